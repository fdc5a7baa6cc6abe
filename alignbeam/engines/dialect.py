"""What is asked of an engine, whichever it is, and how its answers are distrusted. No HTTP here.

Every kind of engine has a dialect: ``vllm``, ``llamacpp``, ``sglang``. A dialect writes the bodies
of requests, reads answers into ``Numbers`` and tokens, and says what the engine says of itself.
"""

from __future__ import annotations

import abc
import functools
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, ParamSpec, Protocol, Self, TypeVar

from alignbeam.config import RoleConfig
from alignbeam.engines.client import EngineClient, Json

#: Rounding may lift a probability, or a sum of them, above 1 by this.
_ABOVE_ONE: Final = 1e-3
#: Rounding may put the best of a flat distribution this far below an even share, nats.
_BELOW_EVEN: Final = 0.01
#: Rounding may put the best token this far below another, nats.
_BELOW_BEST: Final = 0.01


class Nonsense(ValueError):
    """An answer that cannot be one; says what is wrong with it."""


_P = ParamSpec("_P")
_Read = TypeVar("_Read")


def distrusting(read: Callable[_P, _Read]) -> Callable[_P, _Read]:
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

    @property
    def free(self) -> bool:
        """Whether the engine would take its best token."""
        return self.draw == GREEDY and not self.forbidden and self.only is None


@dataclass(slots=True)
class Numbers:
    """What an engine says of the next token.

    Attributes
    ----------
    chosen : int
        The token that it would take.
    logprobs : dict of int to float
        Log-softmax over the whole vocabulary, nats: of ``chosen``, and of what was asked. Of a
        draw it may be empty.
    then : Numbers or None
        What it says after ``chosen``, where that was asked.
    """

    chosen: int
    logprobs: dict[int, float] = field(default_factory=dict)
    then: Numbers | None = None

    def best(self, count: int) -> list[tuple[int, float]]:
        """Return the ``count`` most probable of the known ids; of equals the lower id first."""
        return sorted(self.logprobs.items(), key=lambda pair: (-pair[1], pair[0]))[:count]

    def best_but(self, forbidden: Iterable[int]) -> int:
        """Return the most probable of the known ids that are not forbidden.

        Raises
        ------
        Nonsense
            There is none.
        """
        barred = set(forbidden)
        for token_id, _ in self.best(len(self.logprobs)):
            if token_id not in barred:
                return token_id
        raise Nonsense("no token that may be chosen")

    def check(self, query: Query, names: Iterable[int], width: int) -> None:
        """Refuse numbers that cannot be those that were asked for.

        Raises
        ------
        Nonsense
            They are too few, or impossible.
        """
        if missing := [i for i in names if i not in self.logprobs]:
            raise Nonsense(f"no log-probability of {len(missing)} ids that were asked for")
        if len(self.logprobs) < min(query.best, width):
            raise Nonsense(f"{len(self.logprobs)} log-probabilities where {query.best} were due")
        if math.fsum(map(math.exp, self.logprobs.values())) > 1 + _ABOVE_ONE:
            raise Nonsense("probabilities that add up to more than 1")
        best_is_told = query.best > 0 or query.free
        most = max(self.logprobs.values(), default=-math.inf)
        if best_is_told and most < -math.log(width) - _BELOW_EVEN:
            raise Nonsense("a best token that is less probable than all of them can be")
        if query.draw == GREEDY and self.chosen not in self.logprobs:
            raise Nonsense("no log-probability of the token that it chose")
        if query.free and self.logprobs[self.chosen] < most - _BELOW_BEST:
            raise Nonsense("a choice that is less probable than another token")
        if self.chosen in query.forbidden or query.only not in (None, self.chosen):
            raise Nonsense("a token that was not to be chosen")


def linked(path: Sequence[Numbers], most: int) -> Numbers:
    """Return the first of 1 to ``most`` tokens in a row, each linked to the next.

    Raises
    ------
    Nonsense
        There are none, or more.
    """
    if not 1 <= len(path) <= most:
        raise Nonsense(f"log-probabilities of {len(path)} tokens, where 1 to {most} were due")
    for numbers, then in itertools.pairwise(path):
        numbers.then = then
    return path[0]


def is_id(value: object, width: int) -> bool:
    """Whether this is an id of a vocabulary of ``width`` ids."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < width


def as_id(value: object, width: int) -> int:
    """Return an id.

    Raises
    ------
    Nonsense
        It is none.
    """
    if not isinstance(value, int) or not is_id(value, width):
        raise Nonsense("a token id that the vocabulary does not have")
    return value


def as_log(value: object, zero: float, hint: str = "") -> float:
    """Return a log-probability, nats.

    Parameters
    ----------
    zero : float
        The engine writes log 0 as this, or less.
    hint : str
        What an engine that gives logits was not told.

    Raises
    ------
    Nonsense
        It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise Nonsense("a log-probability that is no number")
    if value > _ABOVE_ONE:
        raise Nonsense(f"a log-probability above 0{hint}")
    return -math.inf if value <= zero else min(float(value), 0.0)


class Line(Protocol):
    """One engine asked: HTTP, retries, and whether it is still the same are seen to behind it."""

    async def post(self, path: str, body: Json) -> Json:
        """Return the answer to one question."""

    def events(self, path: str, body: Json) -> AsyncIterator[Json]:
        """Yield the pieces of a streamed answer."""

    async def whole(self, call: Awaitable[_Read]) -> _Read:
        """Return what a question comes to; ``Nonsense`` counts against the engine."""

    def salt(self) -> str:
        """Return what keeps one question's prefix to its client where the query has no salt."""


@dataclass(frozen=True, slots=True)
class Contact:
    """An engine that is reached and not yet spoken to.

    Attributes
    ----------
    served : str
        What the engine calls the role's model.
    models : mapping of str to mapping
        What ``/v1/models`` says, by name.
    best : int
        How many best tokens will be asked for; 0 where ids are named instead.
    """

    client: EngineClient
    config: RoleConfig
    served: str
    models: Mapping[str, Mapping[str, Any]]
    best: int


class Dialect(abc.ABC):
    """How one kind of engine is spoken to about a role's model.

    Parameters
    ----------
    served : str
        What the engine calls the model.
    root : str
        Folder, file or hub id that it was started with.
    window, width : int
        Positions, and logit columns.
    """

    #: What people call the engine, and its flag for how many positions it has.
    engine: ClassVar[str]
    positions: ClassVar[str]
    #: Whether what its answers call themselves tells one engine from another. Where it does not,
    #: and of answers that call themselves nothing, none counts that may have come over a connection
    #: opened after the last check.
    signs: ClassVar[bool] = False
    #: Whether it keeps the prefixes of two salts apart.
    salts: ClassVar[bool] = True
    #: How many ids it names in one question, at each of the tokens that it chooses in a row; where
    #: ids take questions of their own, none.
    names_along: ClassVar[int] = 0

    def __init__(self, served: str, root: str, window: int, width: int) -> None:
        self.served, self.root, self.window, self.width = served, root, window, width

    @classmethod
    @abc.abstractmethod
    async def examine(cls, contact: Contact) -> Self:
        """Find out what must be known before the tokenizer can be loaded.

        Raises
        ------
        EngineUnavailable, EngineFault, EngineShortfall
            See ``RemoteRole.from_config``.
        """

    @abc.abstractmethod
    async def tokenize(self, client: EngineClient, text: str) -> tuple[object, int | None]:
        """Return the engine's ids for a text without control tokens, and its positions now."""

    @abc.abstractmethod
    async def numbers(self, line: Line, queries: Sequence[Query]) -> list[Numbers]:
        """Return the numbers of each query, asked at once.

        Raises
        ------
        EngineUnavailable, EngineFault
            The engine is not there, or refuses; what it says is missing, no number, or impossible.
        """

    async def takes_both(
        self, client: EngineClient, named: str, ids: Sequence[int], best: int
    ) -> bool:
        """Whether one engine answers both kinds of questions at once, as engines should.

        Parameters
        ----------
        named : str
            What the engine calls the model that it will be asked for named ids of.
        ids : sequence of int
            What is asked about.
        best : int
            How many best tokens.
        """
        return True

    @abc.abstractmethod
    def stream(
        self,
        line: Line,
        ids: Sequence[int],
        max_tokens: int,
        ends: Sequence[int],
        draw: Draw,
        interval: int,
    ) -> AsyncIterator[tuple[list[int], bool]]:
        """Yield the next tokens of a completion, and whether it ends there.

        Only ``ends`` and the length end it. ``interval`` is how many tokens a piece may have.

        Raises
        ------
        EngineUnavailable, EngineFault
            The engine is not there, or refuses.
        Nonsense
            It says what cannot be.
        """

    def signed_later(self, piece: Mapping[str, Any]) -> bool:
        """Whether a later piece of a streamed answer says who gave it."""
        return False

    @abc.abstractmethod
    def identity(self, answer: Mapping[str, Any]) -> tuple[object, object]:
        """Return which model an answer says it is of, and by which engine; None for neither."""
