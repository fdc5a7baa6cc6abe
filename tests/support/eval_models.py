"""Models whose every next-token distribution is written down: character bigrams as real Llamas.

The single layer is switched off, the embedding is the identity, so the logits depend on the last
token alone and equal the logarithms that the test gives. Everything else is the real thing:
transformers, tokenizers, KV caches, templates, the bridge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignbeam import AlignBeam, BeamConfig, Role
from alignbeam.eval.methods import Models
from alignbeam.judge import CallableJudge

#: The state before the answer's first character, and the end of an answer.
START, END = "START", "END"
_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CONTROLS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
#: Probability of each token that a test does not name.
_REST = 1e-6


def char_tokenizer(shift: int = 0) -> PreTrainedTokenizerFast:
    """One token a byte; ``shift`` unused tokens first, so that ids differ between vocabularies."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*(f"<|unused{i}|>" for i in range(shift)), *_CONTROLS, *alphabet]
    backend = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([p for p in pieces if p.startswith("<|")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def bigram_role(name: str, follows: Mapping[str, Mapping[str, float]], *, shift: int = 0) -> Role:
    """A role that says ``follows[last character][next]``; after any other character it ends."""
    tokenizer = char_tokenizer(shift)
    width = len(tokenizer) + len(tokenizer) % 2

    def ident(symbol: str) -> int:
        special = {START: "<|assistant|>", END: "<|end|>"}
        if symbol in special:
            return int(tokenizer.convert_tokens_to_ids(special[symbol]))
        (token,) = tokenizer.encode(symbol, add_special_tokens=False)
        return int(token)

    logits = torch.full((width, width), math.log(_REST))
    logits[:, ident(END)] = 0.0
    for last, table in follows.items():
        logits[ident(last), ident(END)] = math.log(_REST)
        for symbol, prob in table.items():
            logits[ident(last), ident(symbol)] = math.log(prob)
    config = LlamaConfig(
        vocab_size=width,
        hidden_size=width,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        rms_norm_eps=1e-12,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(width))
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        # RMSNorm turns the one-hot embedding into sqrt(width) at its place.
        model.lm_head.weight.copy_(logits.T / math.sqrt(width))
    model.generation_config = GenerationConfig(eos_token_id=ident(END))
    return Role(name, model, tokenizer)


def bigram_models(
    target: Mapping[str, Mapping[str, float]],
    anchor: Mapping[str, Mapping[str, float]],
    antiexpert: Mapping[str, Mapping[str, float]] | None = None,
    *,
    judge: Callable[[str], float] = lambda text: 1.0,
    shift: int = 7,
    **config: object,
) -> Models:
    """Target and anchor with different ids for the same characters, and a judge by text."""
    beam = AlignBeam(
        bigram_role("target", target),
        bigram_role("anchor", anchor, shift=shift),
        CallableJudge(lambda messages, text: judge(text), "by text"),
        BeamConfig(**{"max_new_tokens": 24, **config}),
    )
    twin = None if antiexpert is None else bigram_role("antiexpert", antiexpert, shift=shift)
    return Models(beam, twin)
