"""A role whose model an engine serves: asked for numbers and for streams of tokens."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, Self, TypeVar

import torch

from alignbeam.config import RoleConfig
from alignbeam.engines.client import EngineClient, Json
from alignbeam.engines.dialect import Dialect, Draw, Nonsense, Numbers, Query
from alignbeam.engines.pace import Pace
from alignbeam.engines.rows import RemoteRows
from alignbeam.engines.scope import scope
from alignbeam.engines.watch import Watch
from alignbeam.errors import Cancelled, EngineFault, EngineShortfall
from alignbeam.models.bare import BareRole
from alignbeam.models.loading import (
    checkpoint_of,
    load_generation_config,
    load_tokenizer,
    template_text,
)

_log = logging.getLogger(__name__)

#: Tokens per streamed piece: fewer pieces cost less. Stop strings are looked for in each.
_INTERVAL: Final = 16
#: Pieces of a stream that may hold no token.
_EMPTY: Final = 8

_Answer = TypeVar("_Answer")


class RemoteRole(BareRole):
    """A role that an engine plays.

    Parameters
    ----------
    name : str
        ``"target"``, ``"anchor"`` or ``"judge"``.
    client : EngineClient
    dialect : Dialect
        How the engine is spoken to.
    source : str
        Where the tokenizer is from.
    salted : bool
        Whether each call keeps its prefixes to itself where its scope has no salt.
    **prompting
        See ``BareRole``.

    Attributes
    ----------
    most : int
        How many best tokens the engine was checked for; 0 where it is asked for named ids.
    watch : Watch
        Whether the engine is there, and still the same.
    pace : Pace
        How busy it seems to be.
    """

    def __init__(
        self,
        name: str,
        client: EngineClient,
        dialect: Dialect,
        source: str,
        tokenizer: Any,
        *,
        most: int = 0,
        salted: bool = False,
        **prompting: Any,
    ) -> None:
        super().__init__(name, tokenizer, width=dialect.width, window=dialect.window, **prompting)
        self.client, self.dialect, self.source = client, dialect, source
        self.most, self._salted = most, salted
        self.watch, self.pace = Watch(self), Pace()

    @classmethod
    def from_config(cls, name: str, config: RoleConfig, best: int = 0) -> Self:
        """Reach the engine of ``config.url`` and check that it can play the role.

        Parameters
        ----------
        best : int
            How many best tokens will be asked for; 0 where ids are named instead.

        Raises
        ------
        EngineUnavailable
            It does not answer.
        EngineShortfall
            It answers, but cannot play the role; says what mends it.
        ModelLoadError, TokenizerError
            The tokenizer cannot be loaded or does not fit.
        """
        from alignbeam.engines import check

        key = None
        if config.key_env is not None:
            key = os.environ.get(config.key_env)
            if not key:
                raise EngineShortfall(
                    f"{name}.key_env names {config.key_env}, which is not set in the environment"
                )
        client = EngineClient(
            name, str(config.url), key, connect_s=config.connect_s, read_s=config.read_s
        )
        dialect = scope.get().run(check.examine(client, config, best))
        source = config.tokenizer or dialect.root
        folder = checkpoint_of(source, name=name, revision=config.revision)
        role = cls(
            name,
            client,
            dialect,
            source,
            load_tokenizer(folder, name=name, revision=config.revision),
            most=best,
            salted=getattr(config, "kind", "rubric") != "rubric",
            generation_config=load_generation_config(folder, config.revision),
            system_prompt=config.system_prompt,
            chat_template=template_text(config.chat_template),
            thinking=config.thinking,
            fold_turns=config.fold_turns,
        )
        scope.get().run(role.watch.check())
        role.watch.begin()
        if not dialect.salts:
            _log.warning(
                "the %s's engine (%s) keeps one prompt cache for all: by time, a client may learn "
                "what another has asked; docs/scaling.md says what to do",
                name,
                dialect.engine,
            )
        return role

    def rows(self, prompts: Sequence[Sequence[int]], salts: Sequence[str] = ()) -> RemoteRows:
        """Return rows that hold token ids only; the engine has the cache."""
        return RemoteRows(self, prompts, salts)

    def ask(self, queries: Sequence[Query]) -> list[Numbers]:
        """Ask about some next tokens, all at once.

        Raises
        ------
        EngineUnavailable, EngineFault
            The engine is not there, or gives what cannot be true.
        Cancelled
            Nobody waits any longer.
        """
        return scope.get().run(self.numbers(queries))

    def start(self, queries: Sequence[Query]) -> Callable[[], list[Numbers]]:
        """Ask without waiting; what is returned waits, and raises as ``ask`` does."""
        return scope.get().begin(self.numbers(queries))

    async def numbers(self, queries: Sequence[Query], *, checking: bool = False) -> list[Numbers]:
        """Do as ``ask``, on the event loop."""
        return await self.dialect.numbers(_Line(self, checking), queries)

    def nonsense(self, error: Nonsense, checking: bool = False) -> EngineFault:
        """Return the error of an answer that cannot be one; it counts as a failure."""
        if not checking:
            self.client.breaker.failed(f"the {self.name}'s engine gave {error}")
        return self.client.fault(str(error))

    def salt(self) -> str:
        """Return what keeps a question's prefix apart in the engine's cache; empty shares it."""
        return scope.get().salt or (os.urandom(16).hex() if self._salted else "")

    def named_logprobs(
        self, sequences: Sequence[Sequence[int]], names: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return log-probabilities [R][names] of named ids after each sequence.

        Raises
        ------
        EngineUnavailable, EngineFault
            See ``ask``.
        """
        asked = [Query(tuple(s), names=tuple(n)) for s, n in zip(sequences, names, strict=True)]
        numbers = self.ask(asked)
        return [
            [one.logprobs[i] for i in wanted] for one, wanted in zip(numbers, names, strict=True)
        ]

    def next_token_logits(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Nothing that an engine gives; see ``RemoteRows.logits``."""
        return self.rows(sequences).logits

    def stream(self, ids: Sequence[int], max_tokens: int, draw: Draw, interval: int) -> TokenStream:
        """Begin to complete ``ids``; does not wait."""
        # A copy: the row goes on growing by what is read of the stream.
        return TokenStream(self, list(ids), max_tokens, draw, interval or _INTERVAL)


class _Line:
    """See ``dialect.Line``."""

    def __init__(self, role: RemoteRole, checking: bool = False) -> None:
        self._role, self._checking = role, checking

    async def post(self, path: str, body: Json) -> Json:
        answer = await self._role.client.post(path, body, checking=self._checking)
        await self._role.watch.recognise(answer, checking=self._checking)
        return answer

    async def events(self, path: str, body: Json) -> AsyncIterator[Json]:
        watch, dialect = self._role.watch, self._role.dialect
        async for event in self._role.client.events(path, body):
            await watch.recognise(event, signed_later=dialect.signed_later(event))
            yield event

    async def whole(self, call: Awaitable[_Answer]) -> _Answer:
        try:
            answer = await call
        except Nonsense as error:
            raise self._role.nonsense(error, self._checking) from error
        self._role.client.breaker.succeeded()
        return answer

    def salt(self) -> str:
        return self._role.salt()


class TokenStream:
    """One completion as it arrives.

    Attributes
    ----------
    tokens : list of int
        What was taken so far.
    """

    def __init__(
        self, role: RemoteRole, ids: Sequence[int], max_tokens: int, draw: Draw, interval: int
    ) -> None:
        self._role, self._most = role, max_tokens
        self.tokens: list[int] = []
        self._ready: list[int] = []
        self._ended = False
        self._arrived: queue.SimpleQueue[tuple[list[int], bool] | BaseException] = (
            queue.SimpleQueue()
        )
        pieces = role.dialect.stream(_Line(role), ids, max_tokens, role.end_ids, draw, interval)
        self._call = scope.get().start(self._read(pieces))
        # A call that was cancelled before it began has said nothing.
        self._call.add_done_callback(lambda _: self._arrived.put(asyncio.CancelledError()))

    async def _read(self, arriving: AsyncIterator[tuple[list[int], bool]]) -> None:
        ended = False
        count = pieces = later = 0
        began = last = 0.0
        try:
            async for ids, ended in arriving:
                # From the first piece on: until then the prompt is read, too.
                last = time.monotonic()
                began, later = (began, later + len(ids)) if pieces else (last, 0)
                count, pieces = count + len(ids), pieces + 1
                if count > self._most or pieces > self._most + _EMPTY:
                    raise Nonsense("more of an answer than was asked for")
                self._arrived.put((ids, ended))
        except Nonsense as error:
            self._arrived.put(self._role.nonsense(error))
        except BaseException as error:  # handed to whoever takes, cancellation included
            self._arrived.put(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._role.client.breaker.succeeded()
            if not ended:
                self._arrived.put(self._role.client.fault("an answer without its end"))
        finally:
            self._role.pace.saw(later, last - began)

    def take(self) -> int:
        """Return the next token, waiting for it.

        Raises
        ------
        EngineUnavailable, EngineFault
            The stream broke off, or ended too soon.
        Cancelled
            Nobody waits any longer.
        """
        while not self._ready:
            if self._ended:
                raise self._role.client.fault("an answer that ends before its end token or length")
            # The loop's own time limits bound this wait.
            arrived = self._arrived.get()
            if isinstance(arrived, asyncio.CancelledError):
                raise Cancelled("given up")
            if isinstance(arrived, BaseException):
                raise arrived
            self._ready, self._ended = list(arrived[0]), arrived[1]
        token_id = self._ready.pop(0)
        self.tokens.append(token_id)
        return token_id

    def close(self) -> None:
        """Abort it; the engine frees what it held."""
        self._call.cancel()
