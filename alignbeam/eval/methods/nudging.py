"""Nudging: where the target is unsure, the anchor writes the next word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from alignbeam.config import Count, Share
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.decoding.steer import Taken
from alignbeam.eval.methods.decoding import (
    Guided,
    GuideSteer,
    answer_steered,
    requests_of,
    wishes_of,
)
from alignbeam.eval.methods.protocol import Answers, Method, Models
from alignbeam.models.conversation import Message
from alignbeam.models.role import Role
from alignbeam.result import Wish
from alignbeam.vocab.retokenize import Retokenizer, UnspellableBytes, split_utf8


@dataclass(slots=True)
class _Word:
    """A word on its way from the anchor; ``before`` is the answer so far, None before it begins."""

    row: int
    before: bytes | None
    text: bytes = b""
    logprob: float = 0.0
    ended: bool = False
    wishes: tuple[Wish, ...] = ()

    @property
    def begun(self) -> bool:
        """Whether there is any text for the anchor to read."""
        return self.before is not None or bool(self.text)


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
    depends_on: ClassVar[tuple[str, ...] | None] = ("target", "anchor", "bridge")
    gate: Share = 0.4
    word_tokens: Count = 16

    def answer(self, models: Models, prompts: Sequence[list[Message]]) -> Answers:
        """See ``Method.answer``."""
        target, anchor = models.target, models.anchor
        steering = Guided(
            lambda requests, clock, beams: _NudgeSteer(
                self, target, [anchor], requests, clock, beams
            )
        )
        clock = Clock([target.device, anchor.device])
        requests = requests_of(target, models, prompts)
        return answer_steered(target, requests, self.description, clock, steering)


class _NudgeSteer(GuideSteer):
    """Inserts the anchor's next word wherever the target is unsure."""

    def __init__(self, method: Nudging, target: Role, *batch: Any) -> None:
        super().__init__(*batch)
        self._method, self._target = method, target
        self._spell = Retokenizer(target.vocabulary)

    def decide(
        self, answers: Mapping[Any, bytes | None], target: NextTokens
    ) -> Sequence[Taken | None]:
        """See ``GuideSteer.decide``."""
        unsure = target.logits.float().softmax(-1).amax(-1) < self._method.gate
        words = {
            owner: _Word(row, answers[owner])
            for row, (owner, low) in enumerate(zip(answers, unsure.tolist(), strict=True))
            if low
        }
        with self.clock.part("anchor"):
            self._write(words)
        taken: list[Taken | None] = [None] * len(answers)
        for word in words.values():
            taken[word.row] = self._taken(word)
        return taken

    def _write(self, words: Mapping[Any, _Word]) -> None:
        """Let the anchor write each word, all of them side by side."""
        (guide,) = self.guides
        growing = dict(words)
        for _ in range(self._method.word_tokens):
            begun = {o: (w.before or b"") + w.text for o, w in growing.items() if w.begun}
            unreadable = guide.show(begun)
            growing = {o: w for o, w in growing.items() if o not in unreadable}
            if not growing:
                return
            said = guide.next_tokens(list(growing))
            growing = {
                owner: word
                for row, (owner, word) in enumerate(growing.items())
                if _grow(word, said, row, wishes_of(owner))
            }

    def _taken(self, word: _Word) -> Taken | None:
        """Put a word into target tokens; None where the anchor had nothing to say."""
        logprob = word.logprob
        if word.ended:
            return Taken((self._target.end_ids[0],), logprob, "nudge", word.wishes)
        complete, _ = split_utf8(word.text)
        if word.before is None:
            # The anchor's template opens an answer its own way, the target's another.
            complete = self._target.opening + complete.lstrip(b" ")
        try:
            ids = self._spell.encode(complete)  # bytes: a model may well say what is no UTF-8
        except UnspellableBytes:
            return None
        return Taken(tuple(ids), logprob, "nudge", word.wishes) if ids else None


def _grow(word: _Word, anchor: NextTokens, row: int, wishes: int) -> bool:
    """Add the anchor's next token to its word; whether the word may go on."""
    token_id = anchor.best[row]
    if wishes and not word.wishes:
        word.wishes = anchor.wishes(row, wishes)
    if token_id in anchor.role.end_ids:
        word.ended = not word.text  # after a word, the target is asked first
        return False
    data = anchor.role.bytes_of(token_id)
    if not data or (word.text.strip() and data[:1].isspace()):
        return False
    word.text += data
    word.logprob += anchor.logprob(row, token_id)
    return True
