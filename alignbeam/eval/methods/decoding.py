"""One greedy beam per request with a hand on the wheel: what the steered baselines share.

The target's own cached rows, a function that may choose the next tokens of any row, and the
target's choice everywhere else. What comes out is the steered text; nothing else is ever read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from alignbeam.config import BeamConfig
from alignbeam.decoding.beam import Beam, Request
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.sampling import draw
from alignbeam.errors import NonFiniteLogits, PromptError
from alignbeam.eval.methods.protocol import Models
from alignbeam.eval.run.records import StepRecord
from alignbeam.models.render import Message
from alignbeam.models.role import Role
from alignbeam.vocab.bridge import Bridge
from alignbeam.vocab.retokenize import Retokenizer, UnspellableBytes, split_utf8


@dataclass(frozen=True, slots=True)
class Taken:
    """What a steering function chose for one row.

    Attributes
    ----------
    token_ids : tuple of int
        Target tokens, one or more.
    prob : float
        Their probability under what chose them, 0..1.
    source : str
        Who chose.
    anchor : tuple of (str, float)
        What the guide wanted most.
    """

    token_ids: tuple[int, ...]
    prob: float
    source: str
    anchor: tuple[tuple[str, float], ...] = ()


#: Called with the beams that still grow, their indices in the batch and the target's logits
#: [len(beams), Vt]; None leaves a row to the target.
Steer = Callable[[Sequence[Beam], Sequence[int], torch.Tensor], Sequence[Taken | None]]


def make_request(target: Role, messages: list[Message], config: BeamConfig) -> Request:
    """Render a request for the target alone and check that it fits.

    Raises
    ------
    PromptError
    """
    ids = target.render(messages)
    target.check_room(len(ids), 1)
    room = min(config.max_new_tokens, target.window - len(ids))
    return Request(messages, config, ids, [], room)


def decode(
    models: Models,
    prompts: Sequence[list[Message]],
    steer: Steer,
    clock: Clock,
    *,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> tuple[list[Beam], list[list[StepRecord]]]:
    """Grow one beam per request until it ends.

    Parameters
    ----------
    prefixes : sequence of sequence of int, or None
        Target tokens that each answer begins with; they are part of it and count in its length.

    Returns
    -------
    beams : list of Beam
    traces : list of list of StepRecord
        The steered tokens of each.

    Raises
    ------
    NonFiniteLogits, PromptError
    """
    target, config = models.target, models.config
    requests = [make_request(target, messages, config) for messages in prompts]
    beams = [Beam.of(request, 0, target.opening) for request in requests]
    fixed = [list(ids) for ids in prefixes] if prefixes is not None else [[] for _ in beams]
    for beam, ids in zip(beams, fixed, strict=True):
        _append(target, beam, ids)
    traces: list[list[StepRecord]] = [[] for _ in beams]
    with clock.part("target"):
        rows = target.rows([r.target_ids + f for r, f in zip(requests, fixed, strict=True)])
    held = list(range(len(beams)))  # held[j] is the beam of row j
    logits = rows.logits
    while any(beam.live for beam in beams):
        at = [j for j, i in enumerate(held) if beams[i].live]
        live = [held[j] for j in at]
        theirs = logits if len(at) == len(held) else logits[at]
        if not bool(theirs.amax(-1).isfinite().all()):
            raise NonFiniteLogits("target: NaN or +inf logits; check the weights and the dtype")
        chosen = steer([beams[i] for i in live], live, theirs)
        new: list[list[int]] = [[] for _ in held]
        for row, (j, i, taken) in enumerate(zip(at, live, chosen, strict=True)):
            step = len(beams[i].token_ids)
            if taken is None:
                ids = [_own_choice(beams[i], theirs[row])]
            else:
                ids = list(taken.token_ids)
                if config.wishes > 0:
                    traces[i].append(_traced(target, taken, step, theirs[row], config.wishes))
            new[j] = _append(target, beams[i], ids)
        still = [j for j, i in enumerate(held) if beams[i].live]
        with clock.part("target"):
            if still and 2 * len(still) <= len(held):  # each drop copies the cache
                rows.select(still)
                new = [new[j] for j in still]
                held = [held[j] for j in still]
            growing = zip(held, new, strict=True)
            logits = rows.extend([ids if beams[i].live else [] for i, ids in growing])
    return beams, traces


def own_choice(
    beams: Sequence[Beam], live: Sequence[int], logits: torch.Tensor
) -> list[Taken | None]:
    """Leave every row to the target."""
    return [None] * len(beams)


def _own_choice(beam: Beam, logits: torch.Tensor) -> int:
    config = beam.request.config
    if config.temperature > 0:
        return draw(logits, config.temperature, config.top_k, config.top_p, beam.generator)
    return int(logits.argmax(-1))


def _append(target: Role, beam: Beam, ids: Sequence[int]) -> list[int]:
    """Append tokens until the beam ends; return those that were appended."""
    done: list[int] = []
    for token_id in ids:
        if not beam.live:
            break
        beam.append(token_id, target.bytes_of(token_id), ends=token_id in target.end_ids)
        done.append(token_id)
    return done


def _traced(target: Role, taken: Taken, step: int, logits: torch.Tensor, wishes: int) -> StepRecord:
    text = b"".join(target.bytes_of(i) for i in taken.token_ids)
    return StepRecord(
        step=step,
        candidate=0,
        source=taken.source,
        text=text.decode("utf-8", errors="replace"),
        prob=round(taken.prob, 4),
        target=wishes_of(target, logits, wishes),
        anchor=taken.anchor,
    )


def wishes_of(role: Role, logits: torch.Tensor, count: int) -> tuple[tuple[str, float], ...]:
    """Return the most probable tokens of a role, best first: text and probability."""
    best = logits.float().softmax(-1).topk(min(count, logits.shape[-1]))
    return tuple(
        (role.bytes_of(i).decode("utf-8", errors="replace"), round(p, 4))
        for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )


class Guide:
    """A second model that reads each answer's text as it grows, re-tokenised as it would read it.

    Its prompt is rendered with its own template and prefilled once; afterwards its cached rows
    are taken back to the longest common prefix and fed the rest.

    Parameters
    ----------
    role : Role
    prompts : sequence of messages
    """

    def __init__(self, role: Role, prompts: Sequence[list[Message]]) -> None:
        self.role = role
        self._retokenizer = Retokenizer(role.tokenizer)
        self._prompts = [role.render(messages) for messages in prompts]
        self._rows = role.rows(self._prompts)
        self._held = list(range(len(self._prompts)))

    def read(
        self, index: Sequence[int], texts: Sequence[bytes | None]
    ) -> list[torch.Tensor | None]:
        """Logits [width] after each text: an answer's bytes so far, without any opening.

        Parameters
        ----------
        index : sequence of int
            Which request each text belongs to.
        texts : sequence of (bytes or None)
            None for an answer that has not begun: the opening is then the guide's own to choose.

        Returns
        -------
        list of (Tensor or None)
            None where the model cannot be asked: the text stops inside a character, its
            tokenizer cannot spell the bytes, or its window is full.
        """
        suffix: dict[int, list[int]] = {}
        for i, text in zip(index, texts, strict=True):
            ids = self._encode(i, text)
            if ids is not None:
                suffix[i] = ids
        starts = [len(self._prompts[i]) for i in self._held]
        logits = self._rows.replace_suffixes(starts, [suffix.get(i) for i in self._held])
        row_of = {i: j for j, i in enumerate(self._held)}
        return [logits[row_of[i]] if i in suffix else None for i in index]

    def _encode(self, i: int, text: bytes | None) -> list[int] | None:
        if text is None:
            return []
        complete, unfinished = split_utf8(self.role.opening + text)
        if unfinished:
            return None
        try:
            ids = self._retokenizer.encode(complete)
            self.role.check_room(len(self._prompts[i]), len(ids) + 1)
        except (UnspellableBytes, PromptError):
            return None
        return ids

    def keep(self, live: Sequence[int]) -> None:
        """Let go of the requests that are not in ``live``, once they are half of all held."""
        wanted = set(live)
        keep = [j for j, i in enumerate(self._held) if i in wanted]
        if keep and 2 * len(keep) <= len(self._held):
            self._rows.select(keep)
            self._held = [self._held[j] for j in keep]


def text_of(beam: Beam) -> bytes | None:
    """Return an answer's bytes so far; None where it has not begun."""
    return beam.text_bytes if beam.token_ids else None


class Translator:
    """A guide's whole next-token distribution, in the target's vocabulary.

    ``t[d] = sum of p[a] over all a with table[a] = d``: as in the mixing step, but with every
    anchor token instead of the best ``top_b``, because these methods compare whole
    distributions. What does not translate is left out, so that ``sum(t) <= 1``.
    """

    def __init__(self, bridge: Bridge, width: int, device: torch.device) -> None:
        self._width = width
        self._maps = {}
        for opening, table in ((False, bridge.table), (True, bridge.opening_table)):
            here = table.to(device).long()
            kept = (here >= 0).nonzero()[:, 0]
            self._maps[opening] = (kept, here[kept])

    def __call__(self, logits: torch.Tensor, *, opening: bool) -> torch.Tensor:
        """Translate logits [Va] to probabilities [Vt], float32."""
        kept, to = self._maps[opening]
        p = logits.to(kept.device).float().softmax(-1)
        return torch.zeros(self._width, device=kept.device).index_add_(0, to, p[kept])
