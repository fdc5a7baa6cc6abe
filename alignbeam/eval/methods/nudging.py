"""Nudging: where the target is unsure, the anchor writes the next word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from alignbeam.decoding.beam import Beam
from alignbeam.decoding.clock import Clock
from alignbeam.errors import ConfigError
from alignbeam.eval.methods.decoding import Guide, Taken, decode, wishes_of
from alignbeam.eval.methods.protocol import Answers, Method, Models, only
from alignbeam.models.render import Message
from alignbeam.models.role import Role
from alignbeam.vocab.retokenize import Retokenizer, UnspellableBytes, split_utf8


@dataclass(slots=True)
class _Word:
    """A word on its way from the anchor."""

    row: int
    text: bytes = b""
    prob: float = 1.0
    ended: bool = False
    heard: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Nudging(Method):
    """The target decodes; below a top probability of ``gate`` the anchor's next word is inserted.

    The anchor reads the answer's text, writes greedily up to the beginning of another word, and
    its text is put into the target's tokens. No probabilities are mixed, so no bridge is needed.

    Attributes
    ----------
    gate : float
        The paper's gamma, 0..1; the published commands use 0.4, the published code 0.3.
    word_tokens : int
        Longest word, in anchor tokens.

    Source
    ------
    Fei et al., Nudging: inference-time alignment of LLMs via guided decoding, ACL 2025
    (arXiv 2410.09300).
    """

    name: ClassVar[str] = "nudging"
    citation: ClassVar[str] = "Fei et al. 2025, ACL (arXiv 2410.09300)"
    description: ClassVar[str] = "the anchor writes the next word where the target is unsure"
    gate: float = 0.4
    word_tokens: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.gate <= 1 or self.word_tokens < 1:
            raise ConfigError("nudging: gate must be in 0..1 and word_tokens at least 1")

    def answer(self, models: Models, prompts: Sequence[list[Message]]) -> Answers:
        """See ``Method.answer``."""
        target, anchor = models.target, models.anchor
        clock = Clock([target.device, anchor.device])
        with clock.part("anchor"):
            guide = Guide(anchor, prompts)
        spell = Retokenizer(target.tokenizer)

        def steer(
            beams: Sequence[Beam], live: Sequence[int], logits: torch.Tensor
        ) -> list[Taken | None]:
            unsure = logits.float().softmax(-1).amax(-1) < self.gate
            words = [_Word(row) for row, low in enumerate(unsure.tolist()) if low]
            with clock.part("anchor"):
                guide.keep(live)
                self._write(words, guide, beams, live, models.config.wishes)
            taken: list[Taken | None] = [None] * len(beams)
            for word in words:
                taken[word.row] = _as_taken(word, target, spell, beams[word.row])
            return taken

        beams, traces = decode(models, prompts, steer, clock)
        pairs = zip(beams, traces, strict=True)
        found = [only(beam.candidate(), self.description, trace) for beam, trace in pairs]
        return Answers(found, clock.timings())

    def _write(
        self,
        words: Sequence[_Word],
        guide: Guide,
        beams: Sequence[Beam],
        live: Sequence[int],
        wishes: int,
    ) -> None:
        """Let the anchor write each word, all of them side by side."""
        growing = list(words)
        for _ in range(self.word_tokens):
            if not growing:
                return
            texts = [_shown(beams[w.row], w) for w in growing]
            read = guide.read([live[w.row] for w in growing], texts)
            following = []
            for word, logits in zip(growing, read, strict=True):
                if logits is not None and _grow(word, logits, guide.role, wishes):
                    following.append(word)
            growing = following


def _shown(beam: Beam, word: _Word) -> bytes | None:
    """Return the answer and the word so far, for the anchor to read; None before either."""
    if not beam.token_ids and not word.text:
        return None
    return beam.text_bytes + word.text


def _grow(word: _Word, logits: torch.Tensor, anchor: Role, wishes: int) -> bool:
    """Add the anchor's next token to its word; whether the word may go on."""
    probs = logits.float().softmax(-1)
    token_id = int(probs.argmax(-1))
    if wishes and not word.heard:
        word.heard = wishes_of(anchor, logits, wishes)
    if token_id in anchor.end_ids:
        word.ended = not word.text  # after a word, the target is asked first
        return False
    data = anchor.bytes_of(token_id)
    if not data or (word.text.strip() and data[:1].isspace()):
        return False
    word.text += data
    word.prob *= float(probs[token_id])
    return True


def _as_taken(word: _Word, target: Role, spell: Retokenizer, beam: Beam) -> Taken | None:
    """Put a word into target tokens; None where the anchor had nothing to say."""
    if word.ended:
        return Taken((target.end_ids[0],), word.prob, "nudge", word.heard)
    complete, _ = split_utf8(word.text)
    if not beam.token_ids:
        # The anchor's template opens an answer its own way, the target's another.
        complete = target.opening + complete.lstrip(b" ")
    try:
        ids = spell.encode(complete)  # bytes, because a model may well say what is no UTF-8
    except UnspellableBytes:
        return None
    return Taken(tuple(ids), word.prob, "nudge", word.heard) if ids else None
