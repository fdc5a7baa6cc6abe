"""The demonstration: two requests in full, then refusal rates of three systems.

The specialist alone, the anchor alone and AlignBeam answer the same requests with greedy
decoding; replies are read strictly (``alignbeam.eval.refusal``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from alignbeam.demo.prompts import DemoRequest, PromptSet
from alignbeam.eval.final_answer import final_number
from alignbeam.eval.refusal import is_refusal
from alignbeam.eval.stats import Rate, rate

if TYPE_CHECKING:
    from alignbeam import AlignBeam
    from alignbeam.result import Result

#: Prompts that run as one batch.
BATCH = 12

#: Long enough for a refusal and what would follow it, short enough for a demonstration.
MAX_NEW_TOKENS = 80

SYSTEMS = ("target alone", "anchor alone", "AlignBeam")


@dataclass(frozen=True, slots=True)
class BothAnswers:
    """One request, answered by the target alone and by AlignBeam."""

    asked: DemoRequest
    alone: str
    result: Result


@dataclass(frozen=True, slots=True)
class Tally:
    """What one system did.

    Attributes
    ----------
    system : str
        One of ``SYSTEMS``.
    harmful_refused, benign_refused : Rate
        Strictly read refusals. High is safe for the one, wrong for the other.
    solved : Rate
        Word problems whose reply gives the right number at its end.
    fixed_refusals : int
        Harmful requests answered with the fixed refusal, because no candidate passed the judge.
    replies : dict of (source, row) to str
        Every reply.
    """

    system: str
    harmful_refused: Rate
    benign_refused: Rate
    solved: Rate
    fixed_refusals: int = 0
    replies: dict[tuple[str, str, str], str] = field(default_factory=dict, repr=False)


def answer_pair(beam: AlignBeam, asked: DemoRequest) -> BothAnswers:
    """Answer one request both ways."""
    (alone,) = beam.alone("target", [asked.prompt], max_new_tokens=MAX_NEW_TOKENS)
    return BothAnswers(
        asked, alone.text, beam.generate(asked.prompt, max_new_tokens=MAX_NEW_TOKENS)
    )


def tally_systems(
    beam: AlignBeam, prompts: PromptSet, advance: Callable[[int], None] = lambda _: None
) -> list[Tally]:
    """Ask all three systems everything.

    Parameters
    ----------
    beam : AlignBeam
        Target, anchor and judge.
    prompts : PromptSet
        What is asked.
    advance : callable
        Told how many replies came in, ``3 * (harmful + benign)`` in all.
    """
    everything = [("harmful", a) for a in prompts.harmful] + [("benign", a) for a in prompts.benign]
    tallies = []
    for system in SYSTEMS:
        replies: dict[tuple[str, str, str], str] = {}
        fixed = 0
        answers = _ask(beam, system, [asked.prompt for _, asked in everything])
        for (kind, asked), (text, blocked) in zip(everything, answers, strict=True):
            replies[kind, asked.source, asked.row] = text
            fixed += blocked and kind == "harmful"
            advance(1)
        tallies.append(_count(system, prompts, replies, fixed))
    return tallies


def _ask(beam: AlignBeam, system: str, prompts: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield each reply, and whether it is the fixed refusal."""
    if system == "AlignBeam":
        settings = {"max_new_tokens": MAX_NEW_TOKENS, "wishes": 0}
        for outcome in beam.outcomes(prompts, settings, batch_size=BATCH):
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome.text, outcome.finish_reason == "content_filter"
        return
    role: Literal["target", "anchor"] = "target" if system == "target alone" else "anchor"
    found = beam.alone(role, prompts, batch_size=BATCH, max_new_tokens=MAX_NEW_TOKENS)
    yield from ((candidate.text, False) for candidate in found)


def _count(
    system: str, prompts: PromptSet, replies: dict[tuple[str, str, str], str], fixed: int
) -> Tally:
    def reply(kind: str, asked: DemoRequest) -> str:
        return replies[kind, asked.source, asked.row]

    problems = [asked for asked in prompts.benign if asked.answer is not None]
    return Tally(
        system=system,
        harmful_refused=rate(is_refusal(reply("harmful", a)) for a in prompts.harmful),
        benign_refused=rate(is_refusal(reply("benign", a)) for a in prompts.benign),
        solved=rate(final_number(reply("benign", a)) == a.answer for a in problems),
        fixed_refusals=fixed,
        replies=replies,
    )
