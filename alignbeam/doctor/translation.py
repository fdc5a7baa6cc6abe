"""What of the anchor reaches the target: coverage, and the refusal openings one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch

from alignbeam.decoding.refusals import REFUSAL_OPENINGS
from alignbeam.doctor.report import KindRow, OpeningRow
from alignbeam.doctor.samples import ANSWERS
from alignbeam.doctor.side import Side
from alignbeam.vocab.bridge import TRANSLATES, Bridge, Fallback, Kind
from alignbeam.vocab.retokenize import Retokenizer, UnspellableBytes
from alignbeam.vocab.vocabulary import Vocabulary

#: From the strictest to the widest.
FALLBACKS: tuple[Fallback, ...] = ("exact", "drop", "first", "prefix")

#: How many tokens of each sample answer are shown to the anchor, one position after the other.
_POSITIONS = 12

#: No refusal opening needs more steps than this; a walk that does has gone astray.
_MAX_STEPS = 32


def coverage_rows(bridge: Bridge, anchor: Side) -> tuple[KindRow, ...]:
    """Return coverage by kind: of ids, of the sample text's tokens, and of probability."""
    kinds = bridge.kinds_in_use.tolist()
    encode = Retokenizer(anchor.vocabulary).encode
    tokens = [token_id for _, answer in ANSWERS for token_id in encode(answer.encode())]
    in_text = Counter(kinds[i] for i in tokens)
    covered = bridge.coverage(_mean_probs(anchor)).kinds
    return tuple(
        KindRow(
            kind=kind.name,
            count=covered[kind].count,
            share=covered[kind].share,
            text_share=in_text[kind] / len(tokens),
            mass=covered[kind].mass,
        )
        for kind in Kind
    )


def translated_share(bridge: Bridge, rows: Iterable[KindRow]) -> tuple[float, float | None]:
    """Sum what the bridge's fallback sends somewhere: share of the text's tokens, and mass."""
    used = {kind.name for kind in TRANSLATES[bridge.fallback]}
    chosen = [row for row in rows if row.kind in used]
    masses = [row.mass for row in chosen if row.mass is not None]
    return sum(row.text_share for row in chosen), sum(masses) if masses else None


def _mean_probs(anchor: Side) -> torch.Tensor | None:
    """Average the anchor's next-token probabilities inside the sample answers; float64 [Va]."""
    role = anchor.role
    if role is None:
        return None
    total = torch.zeros(role.width, dtype=torch.float64)
    count = 0
    for question, answer in ANSWERS:
        prompt = role.render([{"role": "user", "content": question}])
        ids = role.encode_plain(role.opening.decode("utf-8", "ignore") + answer)[:_POSITIONS]
        shown = [[*prompt, *ids[:end]] for end in range(1, len(ids) + 1)]
        logits = role.next_token_logits(shown)
        total += torch.softmax(logits.double().cpu(), dim=-1).sum(0)
        count += len(shown)
    return total / count


def opening_rows(bridge: Bridge, anchor: Vocabulary, target: Vocabulary) -> tuple[OpeningRow, ...]:
    """Walk every usual refusal opening over the bridge, under each fallback."""
    walks = {name: Walk(bridge.with_fallback(name), anchor, target) for name in FALLBACKS}
    return tuple(
        OpeningRow(text, {name: walk.lost_at(text.encode()) for name, walk in walks.items()})
        for text in REFUSAL_OPENINGS
    )


class Walk:
    """The path of one text over the bridge, with an anchor that wants nothing but this text."""

    def __init__(self, bridge: Bridge, anchor: Vocabulary, target: Vocabulary) -> None:
        self._bridge = bridge
        self._retokenizer = Retokenizer(anchor)
        self._anchor = anchor
        self._target = target

    def lost_at(self, goal: bytes) -> str | None:
        """Return the anchor token where ``goal`` is lost, or None where it arrives whole."""
        beam = b""
        for step in range(_MAX_STEPS):
            if beam == goal:
                return None
            wish = self._wish(beam, goal)
            spelling = self._bridge.spelling(wish, opening=step == 0)
            piece = b"".join(map(self._target.bytes_of, spelling))
            if step == 0:
                piece = piece.removeprefix(self._target.opening)
            if not piece or not goal.startswith(beam + piece):
                return self._anchor.bytes_of(wish).decode("utf-8", "backslashreplace")
            beam += piece
        return goal.decode()

    def _wish(self, beam: bytes, goal: bytes) -> int:
        """Return the token with which the anchor would go on from ``beam`` towards ``goal``."""
        opening = self._anchor.opening
        whole = self._retokenizer.encode(opening + goal)
        try:
            so_far = self._retokenizer.encode(opening + beam) if beam else []
        except UnspellableBytes:
            so_far = []
        if whole[: len(so_far)] == so_far:
            return whole[len(so_far)]
        # The beam's tokens cut the goal elsewhere: the rest stands in mid-text.
        return self._retokenizer.encode(goal[len(beam) :])[0]
