"""vLLM's token API: what is asked, and how its answers are read and distrusted. No HTTP here.

One engine is asked one kind of question. In vLLM's first model runner a batch that holds a request
with ``logprob_token_ids`` answers every other request of the batch without its best n, so an
anchor's engine is only asked for the best, and a target's or judge's only for named ids.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, TypeVar

from alignbeam.engines.client import Json

COMPLETIONS: Final = "/v1/completions"
#: ``logprob_token_ids`` holds no more.
MAX_NAMES: Final = 128
#: Prompts of one HTTP request.
_MAX_PROMPTS: Final = 16
#: vLLM writes log 0 as this.
_LOG_ZERO: Final = -9999.0
#: Rounding may lift a probability, or a sum of them, above 1 by this.
_ABOVE_ONE: Final = 1e-3
#: Rounding may put the best of a flat distribution this far below an even share, nats.
_BELOW_EVEN: Final = 0.01
#: What a forbidden id's logit is lowered by; the most that the API takes.
_FORBID: Final = -100.0


class Nonsense(ValueError):
    """An answer that cannot be one; says what is wrong with it."""


_P = ParamSpec("_P")
_Read = TypeVar("_Read")


def _distrusting(read: Callable[_P, _Read]) -> Callable[_P, _Read]:
    """Have whatever comes up over an answer that nobody thought of be ``Nonsense``."""

    @functools.wraps(read)
    def reading(*args: _P.args, **kwargs: _P.kwargs) -> _Read:
        try:
            return read(*args, **kwargs)
        except Nonsense:
            raise
        except Exception as error:
            raise Nonsense(f"what cannot be read ({type(error).__name__})") from error

    return reading


@dataclass(frozen=True, slots=True)
class Draw:
    """How the engine chooses a token that is not simply the best."""

    temperature: float
    top_k: int
    top_p: float
    seed: int

    def fields(self) -> Json:
        """Return it as the API names it."""
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": self.seed,
        }


GREEDY: Final = Draw(0.0, 0, 1.0, 0)


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked about the token after ``ids``.

    Attributes
    ----------
    ids : tuple of int
        Prompt and answer so far.
    best : int
        How many of the most probable tokens are wanted.
    names : tuple of int
        Ids whose log-probabilities are wanted; not together with ``best``.
    forbidden : tuple of int
        Ids that are not to be chosen; their probabilities stay as they are.
    only : int or None
        The one id that may be chosen.
    draw : Draw
        How the token is chosen.
    ahead : int
        How many tokens after it are asked about as well, each after what the engine chose before
        it; fewer come where the engine ends.
    salt : str
        Keeps its prefix in the engine's cache apart from other tenants'; empty: see ``Scope``.
    """

    ids: tuple[int, ...]
    best: int = 0
    names: tuple[int, ...] = ()
    forbidden: tuple[int, ...] = ()
    only: int | None = None
    draw: Draw = GREEDY
    ahead: int = 0
    salt: str = ""


@dataclass(slots=True)
class Numbers:
    """What an engine says of the next token.

    Attributes
    ----------
    chosen : int
        The token that it would take.
    logprobs : dict of int to float
        Log-softmax over the whole vocabulary, nats: of ``chosen``, and of what was asked.
    then : Numbers or None
        What it says after ``chosen``, where that was asked.
    """

    chosen: int
    logprobs: dict[int, float] = field(default_factory=dict)
    then: Numbers | None = None

    def best(self, count: int) -> list[tuple[int, float]]:
        """Return the ``count`` most probable of the known ids; of equals the lower id first."""
        return sorted(self.logprobs.items(), key=lambda pair: (-pair[1], pair[0]))[:count]


@dataclass(slots=True)
class Ask:
    """One HTTP request: some queries' prompts, and the names of all of them."""

    query: Query
    names: list[int]
    #: Place of the query, and which names are wanted of it.
    parts: list[tuple[int, tuple[int, ...]]]
    prompts: list[tuple[int, ...]]

    def body(self, model: str, salt: str) -> Json:
        """Return the request's JSON."""
        query = self.query
        body: Json = {
            "model": model,
            "prompt": [list(ids) for ids in self.prompts],
            "max_tokens": 1 + query.ahead,
            "logprobs": max(1, query.best),
            "return_tokens_as_token_ids": True,
            **_plain(query.salt or salt),
            **query.draw.fields(),
        }
        if query.best == 0:
            # Without names the row would be one of the other kind: see the module's docstring.
            body["logprob_token_ids"] = self.names or [0]
        if query.forbidden:
            body["logit_bias"] = {str(i): _FORBID for i in query.forbidden}
        if query.only is not None:
            body["allowed_token_ids"] = [query.only]
        return body

    @_distrusting
    def read(self, answer: Mapping[str, Any], width: int) -> list[Numbers]:
        """Return the numbers for each prompt.

        Raises
        ------
        Nonsense
            Anything is missing, no number, or impossible.
        """
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != len(self.prompts):
            raise Nonsense("not as many choices as prompts")
        placed = {c.get("index"): c for c in choices if isinstance(c, dict)}
        if sorted(placed, key=str) != sorted(range(len(choices)), key=str):
            raise Nonsense("choices without their places")
        found = [_numbers(placed[n], width, 1 + self.query.ahead) for n in range(len(choices))]
        for path in found:
            for numbers in path:
                self._check(numbers, width)
        return [path[0] for path in found]

    def _check(self, numbers: Numbers, width: int) -> None:
        query = self.query
        if missing := [i for i in self.names if i not in numbers.logprobs]:
            raise Nonsense(f"no log-probability of {len(missing)} ids that were asked for")
        if len(numbers.logprobs) < min(query.best, width):
            raise Nonsense(f"{len(numbers.logprobs)} log-probabilities where {query.best} were due")
        if math.fsum(map(math.exp, numbers.logprobs.values())) > 1 + _ABOVE_ONE:
            raise Nonsense("probabilities that add up to more than 1")
        best_is_told = query.best > 0 or (
            query.draw == GREEDY and not query.forbidden and query.only is None
        )
        if best_is_told and max(numbers.logprobs.values()) < -math.log(width) - _BELOW_EVEN:
            raise Nonsense("a best token that is less probable than all of them can be")
        if numbers.chosen in query.forbidden or query.only not in (None, numbers.chosen):
            raise Nonsense("a token that was not to be chosen")


def packed(queries: Sequence[Query]) -> list[Ask]:
    """Put queries of one kind into as few requests as the API's bounds allow."""
    asks: list[Ask] = []
    for place, query in enumerate(queries):
        names = tuple(dict.fromkeys(query.names))
        chunks = [names[n : n + MAX_NAMES] for n in range(0, len(names), MAX_NAMES)] or [()]
        for chunk in chunks:
            for ask in asks:
                together = list(dict.fromkeys((*ask.names, *chunk)))
                if (
                    _kind(ask.query) == _kind(query)
                    and len(together) <= MAX_NAMES
                    and len(ask.prompts) < _MAX_PROMPTS
                ):
                    ask.names = together
                    break
            else:
                ask = Ask(query, list(chunk), [], [])
                asks.append(ask)
            ask.parts.append((place, chunk))
            ask.prompts.append(query.ids)
    return asks


def unpacked(
    asks: Sequence[Ask], answers: Sequence[Sequence[Numbers]], count: int
) -> list[Numbers]:
    """Give each of ``count`` queries its numbers back."""
    found: dict[int, Numbers] = {}
    for ask, answer in zip(asks, answers, strict=True):
        for (place, _), numbers in zip(ask.parts, answer, strict=True):
            known = found.setdefault(place, numbers)
            known.logprobs.update(numbers.logprobs)
    return [found[place] for place in range(count)]


def stream_body(
    model: str,
    ids: Sequence[int],
    max_tokens: int,
    ends: Sequence[int],
    draw: Draw,
    salt: str,
    interval: int,
) -> Json:
    """Return the JSON of a completion that is streamed; only ``ends`` and the length end it."""
    return {
        "model": model,
        "prompt": list(ids),
        "max_tokens": max_tokens,
        "stop_token_ids": list(ends),
        "ignore_eos": True,  # the engine's own idea of an end; ours are in stop_token_ids
        "return_token_ids": True,
        "stream_interval": interval,
        **_plain(salt),
        **draw.fields(),
    }


@_distrusting
def stream_tokens(event: Mapping[str, Any], width: int) -> tuple[list[int], bool]:
    """Return the new tokens of an event, and whether the engine ends there.

    Raises
    ------
    Nonsense
        No tokens, or such as there are none.
    """
    choices = event.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Nonsense("a piece of an answer without its choice")
    ids = choices[0].get("token_ids")
    if not isinstance(ids, list) or not all(_is_id(i, width) for i in ids):
        raise Nonsense("a piece of an answer without token ids (return_token_ids)")
    finish = choices[0].get("finish_reason")
    if finish not in (None, "stop", "length"):
        raise Nonsense(f"an answer that ends with {str(finish)[:20]!r}")
    return ids, finish is not None


def _plain(salt: str) -> Json:
    """Return what switches off the defaults that a model's generation_config.json may bring."""
    plain: Json = {
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    return {**plain, "cache_salt": salt} if salt else plain


def _kind(query: Query) -> tuple[object, ...]:
    return query.best, query.forbidden, query.only, query.draw, query.ahead, query.salt


def _numbers(choice: Mapping[str, Any], width: int, most: int) -> list[Numbers]:
    """Return what is said of 1 to ``most`` tokens in a row, each linked to the next."""
    said = choice.get("logprobs")
    try:
        pairs = list(zip(said["tokens"], said["top_logprobs"], strict=True))  # type: ignore[index]
        path = [
            Numbers(_token_id(token, width), {_token_id(t, width): _log(v) for t, v in of.items()})
            for token, of in pairs
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, Nonsense):
            raise
        raise Nonsense("no log-probabilities of its tokens") from error
    if not 1 <= len(path) <= most:
        raise Nonsense(f"log-probabilities of {len(path)} tokens, where 1 to {most} were due")
    for numbers, then in itertools.pairwise(path):
        numbers.then = then
    return path


def _token_id(token: object, width: int) -> int:
    text = str(token).removeprefix("token_id:")
    if not text.isdecimal() or not _is_id(int(text), width):
        raise Nonsense("a token id that the vocabulary does not have")
    return int(text)


def _is_id(value: object, width: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < width


def _log(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise Nonsense("a log-probability that is no number")
    if value > _ABOVE_ONE:
        raise Nonsense("a log-probability above 0 (the engine needs --logprobs-mode raw_logprobs)")
    return -math.inf if value <= _LOG_ZERO else min(float(value), 0.0)
