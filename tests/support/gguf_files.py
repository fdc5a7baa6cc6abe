"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tiny_models import byte_level_tokenizer, end_ids_of, random_model

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
#: How SentencePiece writes a byte.
_IS_BYTE = re.compile("<0x[0-9A-F]{2}>")


def tiny_llama(padding: int = 0, **changes: Any) -> tuple[Any, Any]:
    """A Llama whose rows are whole blocks of 32, and its tokenizer."""
    tokenizer = byte_level_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    model = random_model(
        "llama",
        len(tokenizer) + padding,
        end_ids=end_ids_of(tokenizer),
        **{**sizes, **changes},
    )
    return model, tokenizer


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    *,
    pre: str = "gpt-2",
    quantised: gguf.GGMLQuantizationType | None = None,
    architecture: str = "llama",
    without: str | None = None,
    **metadata: Any,
) -> dict[str, torch.Tensor]:
    """Write one of a Llama, Mistral or Qwen 2; return the weights by transformers' names.

    These are what a reader must find.

    Parameters
    ----------
    quantised : GGMLQuantizationType or None
        Kind of the matrices; vectors stay float32.
    without : str or None
        A tensor to leave out.
    metadata : str or int
        More entries, ``__`` for dots.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(config.vocab_size)
    write_tokenizer(writer, tokenizer, config.vocab_size, pre)
    for key, value in metadata.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key.replace("__", "."), value)
    weights = {}
    known = getattr(gguf.MODEL_ARCH, architecture.upper(), gguf.MODEL_ARCH.LLAMA)
    names = gguf.get_tensor_name_map(known, config.num_hidden_layers)
    turns = known is gguf.MODEL_ARCH.LLAMA
    for name, tensor in model.state_dict().items():
        here = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert here is not None, name
        if here == without:
            continue
        rows = tensor.float().numpy()
        if turns and (".attn_q." in here or ".attn_k." in here):
            heads = config.num_attention_heads if "_q." in here else config.num_key_value_heads
            rows = _paired(rows, heads)
        if quantised is None or rows.ndim == 1:
            writer.add_tensor(here, rows)
            weights[name] = tensor
            continue
        blocks = gguf.quants.quantize(rows, quantised)
        writer.add_tensor(here, blocks, raw_dtype=quantised)
        back = gguf.quants.dequantize(blocks, quantised)
        if turns and (".attn_q." in here or ".attn_k." in here):
            back = _unpaired(back, heads)
        weights[name] = torch.from_numpy(np.ascontiguousarray(back)).bfloat16()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, width: int, pre: str) -> None:
    """Put a tokenizer into a file, its ids filled up to the head's width.

    Byte-level, or with byte fallback as SentencePiece has it.
    """
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    pieces = state["model"]["byte_fallback"]
    added = {token["id"]: token["special"] for token in state["added_tokens"]}
    tokens, kinds = [], []
    for i in range(width):
        token = backend.id_to_token(i)
        tokens.append(f"[PAD{i}]" if token is None else token)
        kind = _UNUSED if token is None else _NORMAL
        if pieces and token is not None and _IS_BYTE.fullmatch(token):
            kind = _BYTE
        if i in added:
            kind = _CONTROL if added[i] else _USER_DEFINED
        if token is not None and token == state["model"]["unk_token"]:
            kind = _UNKNOWN
        kinds.append(kind)
    merges = [" ".join(pair) for pair in state["model"]["merges"]]
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre("default" if pieces else pre)
    writer.add_token_list(tokens)
    if pieces:
        # What is merged first scores most.
        ranks = {merge.replace(" ", ""): -float(n) for n, merge in reversed([*enumerate(merges)])}
        writer.add_token_scores([ranks.get(token, -1e6) for token in tokens])
        writer.add_add_space_prefix(True)
        writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_token_types(kinds)
    if not pieces:
        writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _paired(rows: Any, heads: int) -> Any:
    """Rotary halves as neighbouring pairs: how llama.cpp keeps queries and keys."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))


def _unpaired(rows: Any, heads: int) -> Any:
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)
