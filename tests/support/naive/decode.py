"""The three phases of section 4: one beam at a time, one whole forward per step, no KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from naive.op import NEVER, best_first, log_softmax, mix_row


class Model:
    """A causal LM as a pure function: token ids -> log-probabilities of the next one.

    Answers are remembered by the ids asked for, so that runs which differ in settings only can
    share them. Every answer is one uncached, unbatched, unpadded forward.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._logits: dict[tuple[int, ...], list[float]] = {}
        self._logprobs: dict[tuple[int, ...], list[float]] = {}

    def logits(self, ids: Sequence[int]) -> list[float]:
        """Next-token logits in float64, as the model gives them."""
        key = tuple(ids)
        if key not in self._logits:
            with torch.inference_mode():
                out = self._model(input_ids=torch.tensor([list(ids)]), use_cache=False)
            self._logits[key] = out.logits[0, -1].double().tolist()
        return self._logits[key]

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """Next-token log-probabilities in float64."""
        key = tuple(ids)
        if key not in self._logprobs:
            self._logprobs[key] = log_softmax(self.logits(ids))
        return self._logprobs[key]

    def forget(self) -> None:
        """Drop what is remembered; the next prompt shares nothing with this one."""
        self._logits.clear()
        self._logprobs.clear()


@dataclass
class Pair:
    """All that decoding needs of two roles; every field is a plain value or a pure function."""

    target: Model
    anchor: Model
    target_bytes: list[bytes | None]
    target_ends: list[int]
    target_opening: bytes
    anchor_bytes: list[bytes | None]
    anchor_opening: bytes
    retokenize: Callable[[bytes], list[int] | None]  # None: the anchor has no tokens for it
    unfinished: Callable[[bytes], bool]
    table: list[int]
    opening_table: list[int]
    #: fallback="prefix": which id bytes are spelled with. Else no token is cut.
    ids: dict[bytes, int] | None = None
    cuts: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)


@dataclass
class Settings:
    alpha: float = 0.5
    top_b: int = 50
    beams: int = 3
    mix_steps: int = 6
    max_new_tokens: int = 12
    mix: str = "linear"
    support: str = "anchor"
    stop: tuple[str, ...] = ()


@dataclass
class Beam:
    ids: list[int]
    logprob: float
    gaps: list[float]  # per token: by how much (log F) the choice was decided
    #: What the anchor has yet to say of its token, with probabilities; b"": the token is over.
    owed: dict[bytes, float] = field(default_factory=lambda: {b"": 1.0})
    finish: str | None = None
    text: str = ""


def beam_bytes(pair: Pair, beam: Beam) -> bytes:
    return b"".join(pair.target_bytes[i] or b"" for i in beam.ids)


def answer_bytes(pair: Pair, beam: Beam) -> bytes:
    """The answer carries neither opening."""
    return beam_bytes(pair, beam).removeprefix(pair.target_opening)


def settle(pair: Pair, settings: Settings, beam: Beam) -> None:
    """Finish a beam whose newest token ended it, and keep its text up to date."""
    text = answer_bytes(pair, beam).decode(errors="replace")
    cuts = [text.index(stop) for stop in settings.stop if stop in text]
    beam.text = text[: min(cuts)] if cuts else text
    if beam.ids[-1] in pair.target_ends:
        beam.finish = "stop"
    elif cuts:
        beam.finish = "stop_string"
    elif len(beam.ids) == settings.max_new_tokens:
        beam.finish = "length"


def cut(pair: Pair, data: bytes) -> tuple[int, bytes]:
    """The longest target token that the bytes begin with (-1 for none), and what is left."""
    assert pair.ids is not None
    if data not in pair.cuts:
        ends = (n for n in range(len(data), 0, -1) if data[:n] in pair.ids)
        n = next(ends, 0)
        pair.cuts[data] = (pair.ids[data[:n]], data[n:]) if n else (-1, b"")
    return pair.cuts[data]


def owed_after(
    pair: Pair, token: int, said: list[tuple[float, int, bytes]], owed: dict[bytes, float]
) -> dict[bytes, float]:
    """Bayes: what the anchor owes once the target has said a token.

    ``said`` are (log p, target id, bytes left) of what the anchor says where its token is over.
    """
    found: dict[bytes, float] = {}
    for logprob, to, left in said:
        if to == token and logprob > NEVER:
            found[left] = found.get(left, 0.0) + owed.get(b"", 0.0) * math.exp(logprob)
    for data, weight in owed.items():
        to, left = cut(pair, data) if data else (-1, b"")
        if to == token:
            found[left] = found.get(left, 0.0) + weight
    total = math.fsum(found.values())
    return {left: weight / total for left, weight in found.items()} if total else {b"": 1.0}


def prime(
    pair: Pair, settings: Settings, target_prompt: list[int], anchor_prompt: list[int]
) -> list[Beam]:
    logits = list(pair.target.logits(target_prompt))
    for end in pair.target_ends:
        logits[end] = NEVER
    table = [-1 if d in pair.target_ends else d for d in pair.opening_table]
    anchor_logprobs = list(pair.anchor.logprobs(anchor_prompt))
    blank = pair.retokenize(pair.anchor_opening) if pair.anchor_opening else None
    if blank is not None and len(blank) == 1:
        # The opening as a token of its own: what follows it, weighted with it, in columns behind.
        weight = anchor_logprobs[blank[0]]
        anchor_logprobs[blank[0]] = NEVER
        for a, logprob in enumerate(pair.anchor.logprobs(anchor_prompt + blank)):
            twice = (pair.anchor_bytes[a] or b"").startswith(pair.anchor_opening)
            anchor_logprobs.append(weight + logprob)
            table.append(-1 if twice else table[a])
    mixed = mix_row(
        anchor_logprobs,
        log_softmax(logits),
        table,
        settings.alpha,
        settings.top_b,
        settings.beams,
        settings.mix,
        settings.support,
    )
    beams = []
    for token, logprob in zip(mixed.token_ids, mixed.logprobs, strict=True):
        beams.append(Beam(ids=[token], logprob=logprob, gaps=[mixed.gap]))
        if pair.ids is not None:
            left = []
            for a, to in enumerate(table):
                piece = pair.anchor_bytes[a % len(pair.anchor_bytes)] or b""
                whole = pair.target_opening + piece.removeprefix(pair.anchor_opening)
                left.append(cut(pair, whole)[1] if to >= 0 else b"")
            said = list(zip(anchor_logprobs, table, left, strict=True))
            beams[-1].owed = owed_after(pair, token, said, {b"": 1.0})
        settle(pair, settings, beams[-1])
    return beams


def target_alone(pair: Pair, ids: list[int]) -> tuple[int, float, float]:
    """The target's best token, its log-probability, and its lead over the second."""
    log_q = pair.target.logprobs(ids)
    first, second = best_first(dict(enumerate(log_q)))[:2]
    return first, log_q[first], log_q[first] - log_q[second]


def mixed_token(
    pair: Pair, settings: Settings, beam: Beam, target_prompt: list[int], anchor_prompt: list[int]
) -> tuple[int, float, float]:
    seen = target_prompt + beam.ids
    shown = None
    if not pair.unfinished(beam_bytes(pair, beam)):
        shown = pair.retokenize(pair.anchor_opening + answer_bytes(pair, beam))
    if shown is None and list(beam.owed) == [b""]:
        return target_alone(pair, seen)
    free = beam.owed.get(b"", 0.0)
    width = len(pair.table)
    log_p, table, lost = [NEVER] * width, list(pair.table), 0.0
    if shown is None:
        lost = free
    elif free:
        log_p = [
            logprob + math.log(free) for logprob in pair.anchor.logprobs(anchor_prompt + shown)
        ]
    if list(beam.owed) != [b""]:
        nexts = [0.0] * len(pair.target_bytes)
        for data, weight in beam.owed.items():
            to = cut(pair, data)[0] if data else -1
            if to >= 0:
                nexts[to] += weight
            elif data:
                lost += weight
        log_p += [math.log(weight) if weight else NEVER for weight in (*nexts, lost)]
        table += [*range(len(nexts)), -1]
    mixed = mix_row(
        log_p,
        pair.target.logprobs(seen),
        table,
        settings.alpha,
        settings.top_b,
        1,
        settings.mix,
        settings.support,
    )
    if pair.ids is not None:
        left = [
            cut(pair, piece or b"")[1] if to >= 0 and to not in pair.target_ends else b""
            for piece, to in zip(pair.anchor_bytes, pair.table, strict=True)
        ]
        logs = pair.anchor.logprobs(anchor_prompt + shown) if shown is not None and free else []
        told = list(zip(logs, pair.table, left, strict=False))
        beam.owed = owed_after(pair, mixed.token_ids[0], told, beam.owed)
    return mixed.token_ids[0], mixed.logprobs[0], mixed.gap


def decode(
    pair: Pair, settings: Settings, target_prompt: list[int], anchor_prompt: list[int]
) -> list[Beam]:
    """Prime, mix, complete: all finished beams, in the order in which they were opened."""
    beams = prime(pair, settings, target_prompt, anchor_prompt)
    for beam in beams:
        while beam.finish is None:
            if len(beam.ids) < settings.mix_steps:
                token, logprob, gap = mixed_token(
                    pair, settings, beam, target_prompt, anchor_prompt
                )
                beam.logprob += logprob
            else:
                token, _, gap = target_alone(pair, target_prompt + beam.ids)
            beam.ids.append(token)
            beam.gaps.append(gap)
            settle(pair, settings, beam)
    return beams


def winner(
    beams: list[tuple[float, float, str]], threshold: float, tie_margin: float
) -> int | None:
    """Index of the answer among (score, log-prob, text), or None where no candidate passes.

    The lowest score wins; scores within the margin of it are ties, which go to the higher log-prob
    (and then the earlier beam); a candidate without text never beats one with text that passes.
    """
    passing = [i for i, (score, _, _) in enumerate(beams) if score <= threshold]
    rivals = [i for i in passing if beams[i][2].strip()] or passing
    if not rivals:
        return None
    lowest = min(beams[i][0] for i in rivals)
    ties = [i for i in rivals if beams[i][0] <= lowest + tie_margin]
    return sorted(ties, key=lambda i: (-beams[i][1], i))[0]
