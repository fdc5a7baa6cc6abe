"""A tiny trio that writes a word of its own at every step: what left, and of whom, can be told."""

from __future__ import annotations

import itertools
import re

import torch
from tiny_models import CHAT_TEMPLATE, ROLE_TOKENS, random_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignbeam import Role

#: 343 words of letters that nothing else in a reply, a log or a series is spelled with.
WORDS = ["Q" + "".join(letters) for letters in itertools.product("XZJVKWY", repeat=3)]
_WORD = re.compile("Q[XZJVKWY]{3}")
END = "<|end|>"


def words_of(text: str) -> set[str]:
    """The marker words in a text."""
    return set(_WORD.findall(text))


def marked_role(name: str, *, seed: int) -> Role:
    """A model of one layer that says marker words, now and then a blank, and ends at last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = [END, *ROLE_TOKENS]
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet, *WORDS])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    tokenizer.chat_template = CHAT_TEMPLATE
    model = random_model("llama", len(vocabulary), seed=seed, num_hidden_layers=1)
    said = torch.full((len(vocabulary),), -60.0)
    said[[vocabulary[word] for word in WORDS]] = 0.0
    said[[vocabulary[END], vocabulary["Ġ"]]] = 2.0
    model.get_output_embeddings().bias = torch.nn.Parameter(said)
    return Role(name, model, tokenizer)
