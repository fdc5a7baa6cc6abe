"""Vocabularies to test with: the real ones where they are at hand, small ones trained here."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CAUSAL = (
    "llama-bpe",
    "qwen2",
    "deepseek-llm",
    "deepseek-coder",
    "phi-3",
    "llama-spm",
    "gpt-2",
    "falcon",
    "mpt",
    "starcoder",
)
SENTENCEPIECE = ("phi-3", "llama-spm")
PAIRS = [(anchor, target) for anchor in CAUSAL for target in CAUSAL if anchor != target]

_FOLDER = Path(
    os.environ.get("ALIGNBEAM_VOCABS")
    or Path(__file__).resolve().parents[2].parent / "shared" / "vocabs"
)


def vocab_folder(name: str) -> Path:
    """Return a real vocabulary's folder, or skip the test that asks for it."""
    folder = _FOLDER / name
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"real vocabulary {name} not found; set ALIGNBEAM_VOCABS to their folder")
    return folder


@functools.cache
def _loaded(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def real(name: str) -> PreTrainedTokenizerFast:
    return _loaded(vocab_folder(name))


# --- small vocabularies ---------------------------------------------------------------------------

CORPUS = (
    "Sorry, I cannot help with that. Sure, here is how to bake bread at home.",
    "The quick brown fox jumps over the lazy dog; 12 + 30 = 42, and 7 * 6 = 42.",
    "Größe, naïve façade, señor. Привет, мир! 你好，世界。 안녕하세요 👋🏽 👋🏽",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\t# three",
)


def wrap(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def byte_level(
    corpus: tuple[str, ...] = CORPUS,
    size: int = 400,
    *,
    nfc: bool = False,
    regex: bool = True,
    end: str = "<|im_end|>",
) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `corpus`, GPT-2 and Qwen style."""
    backend = Tokenizer(models.BPE())
    if nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return wrap(backend, eos_token=end)


def sentencepiece(
    corpus: tuple[str, ...] = CORPUS,
    size: int = 500,
    *,
    style: str = "llama",
    end: str = "</s>",
) -> PreTrainedTokenizerFast:
    """A SentencePiece-style BPE with byte fallback.

    `style` says where the dummy leading space comes from: a Prepend normaliser ("llama"), a
    Metaspace pre-tokenizer ("metaspace-first", "metaspace-always"), or nowhere ("gemma").
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    learner.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    pieces = ["<unk>", "<s>", end, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(learned["vocab"], key=learned["vocab"].get)
    backend = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.add_special_tokens(["<unk>", "<s>", end])
    to_blank = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)]
    if style == "llama":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        backend.decoder = decoders.Sequence(to_blank + strip)
    elif style == "gemma":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.decoder = decoders.Sequence(to_blank)
    elif style in ("metaspace-first", "metaspace-always"):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme=style.removeprefix("metaspace-"), split=style.endswith("always")
        )
        backend.decoder = decoders.Sequence(to_blank + strip)
    else:
        raise ValueError(f"unknown style {style!r}")
    return wrap(backend, eos_token=end, bos_token="<s>", unk_token="<unk>")


SP_STYLES = ("llama", "gemma", "metaspace-first", "metaspace-always")

# Letters that meet every trap: control names, ▁, combining marks, blanks, ZWJ, outside the BMP.
_CONTROL_TEXT = ("<|im_end|>", "</s>", "<s>", "<|eot_id|>", "<0x41>", "[INST]", "<|end|>  ")
texts = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(_CONTROL_TEXT),
        st.sampled_from(("▁", " ", "  ", "\n", "\t", "e\u0301", "\u200d", "𠮷", "\0", "ü", "Å")),
        st.sampled_from(CORPUS),
    ),
    max_size=6,
).map("".join)

byte_strings = st.lists(st.one_of(texts.map(str.encode), st.binary(max_size=6)), max_size=4).map(
    b"".join
)

_corpora = st.lists(texts.filter(str.strip), min_size=1, max_size=5).map(
    lambda drawn: (*drawn, CORPUS[0])
)


@st.composite
def small_tokenizers(draw: st.DrawFn) -> PreTrainedTokenizerFast:
    corpus = draw(_corpora)
    if draw(st.booleans()):
        return byte_level(
            corpus, draw(st.integers(260, 420)), nfc=draw(st.booleans()), regex=draw(st.booleans())
        )
    return sentencepiece(corpus, draw(st.integers(60, 300)), style=draw(st.sampled_from(SP_STYLES)))
