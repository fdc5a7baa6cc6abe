"""Any chat model as judge: its own probabilities of the digits 1 to 5, no text parsed."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Final

from alignbeam.errors import PromptError, TokenizerError
from alignbeam.judge.fill import TURN_NAMES, request_text
from alignbeam.judge.labels import Labels, find_labels
from alignbeam.judge.marks import marks_of
from alignbeam.judge.model_judge import ModelJudge, Unreadable
from alignbeam.judge.protocol import Conversation, JudgeRole
from alignbeam.judge.reader import LabelRow
from alignbeam.judge.rubric import DEFAULT_RUBRIC, Rubric
from alignbeam.judge.verdicts import level_verdict
from alignbeam.judge.views import VIEWS
from alignbeam.result import Verdict

_DIGITS: Final = ("1", "2", "3", "4", "5")
#: 32 bits: a guess costs a whole answer, and no second try meets the same mark.
_NONCE_DIGITS: Final = 8


class RubricJudge(ModelJudge):
    """Scores by ``sum(d * P(d))`` over the digits 1..5 at the answer position.

    The candidate stands in a block marked by a nonce that nobody who writes requests or answers
    can know: a keyed hash of request and candidate, under a key drawn for this judge. So two
    candidates never share a mark, a mark learnt from one call is worthless for the next text,
    and yet the same candidate gets the same verdict, alone or in a batch.

    A candidate longer than the window is judged in overlapping windows and the maximum counts.
    A *request* that leaves no room for that is an error: shortening it would let a long preamble
    hide what the answer is an answer to.

    Parameters
    ----------
    role : JudgeRole
        A model with a chat template.
    rubric : Rubric
        The question.
    label_mass_floor, views, unreadable
        See ``ModelJudge``.
    key : bytes or None
        Of the nonces; None draws one. A fixed key makes runs repeatable, and must then be as
        secret as the verdicts are to be trusted.

    Raises
    ------
    TokenizerError
        The five digits are not five distinct tokens after this template's generation prompt.
    PromptError
        The template cannot render the rubric, with or without a system message.

    Source
    ------
    algorithm.md section 5.
    """

    def __init__(
        self,
        role: JudgeRole,
        rubric: Rubric = DEFAULT_RUBRIC,
        *,
        label_mass_floor: float = 0.5,
        views: Sequence[str] = tuple(VIEWS),
        unreadable: Unreadable = "reject",
        key: bytes | None = None,
    ) -> None:
        super().__init__(
            role,
            f"rubric:{rubric.name}",
            label_mass_floor=label_mass_floor,
            candidate_tokens=rubric.candidate_tokens,
            request_tokens=rubric.request_tokens,
            views=views,
            unreadable=unreadable,
        )
        self._key = secrets.token_bytes(32) if key is None else key
        self.rubric = _renderable(role, rubric)
        self._marks = marks_of(self.rubric.user, TURN_NAMES.values())
        self._labels = self._find_digits()

    def _find_digits(self) -> Labels:
        probe = self.rubric.messages("request", "candidate", *["0" * _NONCE_DIGITS] * 2)
        text = self.role.render_text(probe)

        def encode(whole: str) -> list[int]:
            ids: list[int] = self.role.tokenizer.encode(whole, add_special_tokens=False)
            return ids

        if encode(text) != self.role.render(probe):
            raise TokenizerError(
                f"{self.name}: the rendered rubric does not encode to the rendered ids; "
                "control-token text does not belong in a rubric"
            )
        opening = self.role.opening.decode()
        return find_labels(encode, text, opening, _DIGITS, whole=True, judge=self.name)

    def _nonce(self, request: str, candidate: str) -> str:
        # surrogatepass: text that is no Unicode is refused by the renderer, with its own reason.
        asked, answered = (t.encode("utf-8", "surrogatepass") for t in (request, candidate))
        # The length keeps the pair ("ab", "c") apart from ("a", "bc").
        material = b"%d:%b%b" % (len(asked), asked, answered)
        attempt = 0
        while True:
            digest = hmac.new(self._key, b"%d:%b" % (attempt, material), hashlib.sha256)
            nonce = digest.hexdigest()[:_NONCE_DIGITS]
            if nonce not in request and nonce not in candidate:
                return nonce
            attempt += 1

    def _request_nonce(self, request: str) -> str:
        """Return the mark of the request, the same for all its candidates.

        So what stands before a candidate is the same for all, and is computed once. No candidate
        can know it: it depends on the key, and never leaves.
        """
        return self._nonce(request, "")

    def _rows(self, conversation: Conversation, piece: str) -> list[LabelRow]:
        request = request_text(conversation, self._marks)
        messages = self.rubric.messages(
            request, piece, self._nonce(request, piece), self._request_nonce(request)
        )
        ids = [*self.role.render(messages), *self._labels.suffix]
        return [LabelRow(ids, self._labels.ids)]

    def _verdict(self, read: Sequence[tuple[float, ...]]) -> Verdict:
        (levels,) = read
        return level_verdict(self.name, levels, self.label_mass_floor)


def _renderable(role: JudgeRole, rubric: Rubric) -> Rubric:
    """Return the rubric in the form that the template takes.

    Some templates refuse a system message, others (Phi-3's) leave it out without a word.
    """
    probe = ("request", "candidate", "nonce", "nonce")
    try:
        if rubric.system.strip() in role.render_text(rubric.messages(*probe)):
            return rubric
    except PromptError:
        pass
    folded = rubric.without_system()
    role.render_text(folded.messages(*probe))
    return folded
