"""Random models of many architectures and small tokenizers, made in memory in milliseconds.

Random weights suffice wherever two ways of running one model must agree; the vocabularies are
small enough that byte tokens, unfinished characters and several end tokens turn up all the time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from alignbeam import Role

CORPUS = [
    "Sorry, I can't help with that request. It could hurt somebody.",
    "Sure, here is how to bake bread: mix flour, water, salt and yeast, then wait.",
    "Tom has 12 apples and gives 5 of them to Ann. How many apples are left? 12 - 5 = 7.",
    "What is the capital of France? The capital of France is Paris.",
    "Write a short poem about the sea.\nThe sea is wide, the sea is deep.\n",
    "Ein schöner Tag über den Wäldern; ça va très bien, señor.",
    "你好，世界。今天天气很好。", "مرحبا بالعالم، كيف حالك اليوم؟", "Привет, мир! Как дела?",
    "🙂🙃👍🏽 emoji 👩‍👩‍👧 and ✨ sparks",
]  # fmt: skip

#: Two templates that open an answer differently: at once, and after a blank.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BLANK_TEMPLATE = (
    "<s>{% for m in messages %}"
    "{% if m['role'] == 'assistant' %} {{ m['content'] }}</s>"
    "{% else %}[{{ m['role'] | upper }}] {{ m['content'] }} [/{{ m['role'] | upper }}]{% endif %}"
    "{% endfor %}"
)
#: The first template with a line break before every content, which it leaves to the answer.
NEWLINE_TEMPLATE = CHAT_TEMPLATE.replace("|>{{ m['content'] }}", "|>\n{{ m['content'] }}")
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
#: End tokens beside the first: as many as make random models stop now and then.
MORE_ENDS = tuple(f"<|stop{i}|>" for i in range(8))


def byte_level_tokenizer(
    size: int = 480,
    *,
    template: str | None = CHAT_TEMPLATE,
    end: str = "<|end|>",
    ends: Sequence[str] = MORE_ENDS,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, GPT-2 style; the first end token is ``end``."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=[end, *ends, *ROLE_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(CORPUS, trainer)
    return _wrapped(backend, template, eos_token=end, pad_token=end)


def sentencepiece_tokenizer(
    size: int = 680, *, template: str | None = BLANK_TEMPLATE, ends: Sequence[str] = MORE_ENDS
) -> PreTrainedTokenizerFast:
    """SentencePiece-style BPE with byte fallback, as Llama-2; the first end token is ``</s>``."""
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    specials = ["<unk>", "<s>", "</s>", *ends]
    learner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    # Metaspace here only: merges then stay within words, and words begin with their blank.
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(byte_tokens), show_progress=False, special_tokens=specials
    )
    learner.train_from_iterator(CORPUS, trainer)
    learnt = learner.get_vocab()
    words = [word for word in sorted(learnt, key=learnt.__getitem__) if word not in specials]
    merges = _merges(learner)
    pieces = [*specials, *byte_tokens, *words]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(specials)
    return _wrapped(backend, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _merges(backend: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]


def _wrapped(backend: Tokenizer, template: str | None, **tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    tokenizer.chat_template = template
    return tokenizer


_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
_GEMMA: dict[str, Any] = {**_COMMON, "head_dim": 8, "query_pre_attn_scalar": 8}

#: Model type -> configuration; what ``AutoModelForCausalLM.from_config`` makes of it is tiny.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _COMMON,
    "qwen2": _COMMON,
    "qwen3": {**_COMMON, "head_dim": 8},
    "mistral": {**_COMMON, "sliding_window": 8},
    "gemma2": {**_GEMMA, "sliding_window": 8},
    "gemma3_text": {**_GEMMA, "sliding_window": 8, "num_hidden_layers": 3},
    "phi3": {**_COMMON, "pad_token_id": 0},
    "gpt_neox": {**_COMMON, "num_key_value_heads": None},
    "gpt2": {
        "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.3,
        "tie_word_embeddings": False,
    },
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 512,
        "initializer_range": 0.3, "tie_word_embeddings": False,
    },
    "opt": {
        "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 512, "init_std": 0.3,
        "tie_word_embeddings": False,
    },
    "falcon": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True,
        "initializer_range": 0.3, "new_decoder_architecture": False, "multi_query": True,
        "parallel_attn": True, "tie_word_embeddings": False,
    },
    "bloom": {
        "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3,
        "tie_word_embeddings": False,
    },
    "mpt": {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512, "expansion_ratio": 2,
        "initializer_range": 0.3, "tie_word_embeddings": False,
    },
    "mamba": {
        "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.3,
        "tie_word_embeddings": False,
    },
    "mamba2": {
        "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4, "head_dim": 16,
        "n_groups": 1, "chunk_size": 8, "initializer_range": 0.3, "tie_word_embeddings": False,
    },
    "recurrent_gemma": {
        **_COMMON, "lru_width": 32, "attention_window_size": 8,
        "block_types": ["recurrent", "attention"],
    },
    "lfm2": {**_COMMON, "layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
    "qwen3_next": {
        **_COMMON, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    },
    "llama4_text": {
        **_COMMON, "attention_chunk_size": 8, "num_local_experts": 2, "head_dim": 8,
        "intermediate_size_mlp": 48,
    },
    "jamba": {
        **_COMMON, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 8,
        "expert_layer_offset": 7, "num_experts": 2, "mamba_d_state": 8, "mamba_d_conv": 4,
        "mamba_dt_rank": 4, "use_mamba_kernels": False, "pad_token_id": 0,
    },
}  # fmt: skip


def random_model(
    architecture: str,
    vocab_size: int,
    *,
    seed: int = 0,
    end_ids: Sequence[int] = (0,),
    spread: float = 3.0,
    **changes: Any,
) -> Any:
    """A model in evaluation mode whose logits have standard deviation ``spread``.

    Flat logits would make every choice a tie; ``spread`` is about what trained models have.
    """
    settings = {**ARCHITECTURES[architecture], "vocab_size": vocab_size, **changes}
    specials = {"bos_token_id": None, "eos_token_id": list(end_ids)}
    config = CONFIG_MAPPING[architecture](**{**specials, **settings})
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    probe = torch.randint(0, vocab_size, (1, 24))
    torch.set_rng_state(generator_state)
    with torch.inference_mode():
        std = model(input_ids=probe, use_cache=False).logits.std()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(spread / std)
    model.generation_config = GenerationConfig(eos_token_id=list(end_ids))
    return model


def end_ids_of(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokenizer's end token and those of ``MORE_ENDS`` that it has."""
    known = tokenizer.get_vocab()
    return [tokenizer.eos_token_id, *(known[end] for end in MORE_ENDS if end in known)]


def random_role(
    name: str,
    architecture: str,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    seed: int = 0,
    padding: int = 0,
    **changes: Any,
) -> Role:
    """A role around `random_model`, its head ``padding`` columns wider than the tokenizer."""
    tokenizer = byte_level_tokenizer() if tokenizer is None else tokenizer
    ends = end_ids_of(tokenizer)
    model = random_model(architecture, len(tokenizer) + padding, seed=seed, end_ids=ends, **changes)
    return Role(name, model, tokenizer)


def random_pair(seed: int = 0) -> tuple[Role, Role]:
    """Target (byte-level, Llama) and anchor (SentencePiece-style, Qwen2): what most tests run on.

    Two vocabularies, two openings, two template styles, both heads padded.
    """
    target = random_role("target", "llama", byte_level_tokenizer(), seed=seed, padding=5)
    anchor = random_role("anchor", "qwen2", sentencepiece_tokenizer(), seed=seed + 1, padding=9)
    return target, anchor


def swapped_pair(seed: int = 0) -> tuple[Role, Role]:
    """Target (SentencePiece-style, Mistral) and anchor (byte-level, GPT-2).

    The target's answers open with a blank, the anchor's with a line break.
    """
    anchor_tokenizer = byte_level_tokenizer(template=NEWLINE_TEMPLATE)
    target = random_role("target", "mistral", sentencepiece_tokenizer(), seed=seed)
    anchor = random_role("anchor", "gpt2", anchor_tokenizer, seed=seed + 1)
    return target, anchor


def length_scorer(request: str, candidate: str) -> float:
    """A judge for random text: 1..5 by a hash-like mixture of both texts, the same every time."""
    return 1.0 + (sum(candidate.encode()) + 7 * len(request)) % 401 / 100
