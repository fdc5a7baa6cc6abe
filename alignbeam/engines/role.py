"""A role whose model an engine serves: asked for numbers and for streams of tokens."""

from __future__ import annotations

import asyncio
import os
import queue
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, Self

import torch

from alignbeam.config import RoleConfig
from alignbeam.engines import vllm
from alignbeam.engines.client import EngineClient, Json
from alignbeam.engines.rows import RemoteRows
from alignbeam.engines.scope import scope
from alignbeam.engines.vllm import Draw, Nonsense, Numbers, Query
from alignbeam.engines.watch import Watch
from alignbeam.errors import Cancelled, EngineShortfall
from alignbeam.models.bare import BareRole
from alignbeam.models.loading import load_generation_config, load_tokenizer, template_text

#: What an engine is asked for: its best tokens, or named ones. Never both: see ``engines.vllm``.
Asked = Literal["best", "names"]
#: Tokens per streamed piece: fewer pieces cost less. Stop strings are looked for in each.
_INTERVAL: Final = 16
#: Pieces of a stream that may hold no token.
_EMPTY: Final = 8


class RemoteRole(BareRole):
    """A role that an engine plays.

    Parameters
    ----------
    name : str
        ``"target"``, ``"anchor"`` or ``"judge"``.
    client : EngineClient
    served : str
        What the engine calls the model.
    source : str
        Where the tokenizer is from.
    asked : {"best", "names"}
    salted : bool
        Whether each call keeps its prefixes to itself where its scope has no salt.
    **prompting
        See ``BareRole``.

    Attributes
    ----------
    most : int
        How many best tokens the engine gives.
    watch : Watch
        Whether the engine is there, and still the same.
    """

    def __init__(
        self,
        name: str,
        client: EngineClient,
        served: str,
        source: str,
        tokenizer: Any,
        *,
        asked: Asked,
        most: int = 0,
        salted: bool = False,
        **prompting: Any,
    ) -> None:
        super().__init__(name, tokenizer, **prompting)
        self.client, self.served, self.source = client, served, source
        self.asked, self.most, self._salted = asked, most, salted
        self.watch = Watch(self)

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
        asked: Asked = "best" if best else "names"
        found = scope.get().run(check.examine(client, config, asked, best))
        source = config.tokenizer or found.root
        role = cls(
            name,
            client,
            found.served,
            source,
            load_tokenizer(source, name=name, revision=config.revision),
            asked=asked,
            most=best,
            salted=getattr(config, "kind", "rubric") != "rubric",
            width=found.width,
            window=found.window,
            generation_config=load_generation_config(source, config.revision),
            system_prompt=config.system_prompt,
            chat_template=template_text(config.chat_template),
            thinking=config.thinking,
            fold_turns=config.fold_turns,
        )
        scope.get().run(role.watch.check())
        role.watch.begin()
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
        if self.asked == "best":  # whoever only wants the choice must not ask in the other kind
            queries = [q if q.best or q.names else replace(q, best=1) for q in queries]
        asks = vllm.packed(queries)
        answers = await asyncio.gather(*(self._one(ask, checking) for ask in asks))
        return vllm.unpacked(asks, answers, len(queries))

    async def _one(self, ask: vllm.Ask, checking: bool) -> list[Numbers]:
        body = ask.body(self.served, self._salt())
        try:
            answer = await self.client.post(vllm.COMPLETIONS, body, checking=checking)
            await self.watch.recognise(answer, checking=checking)
            numbers = ask.read(answer, self.width)
        except Nonsense as error:
            if not checking:
                self.client.breaker.failed(f"the {self.name}'s engine gave {error}")
            raise self.client.fault(str(error)) from error
        self.client.breaker.succeeded()
        return numbers

    def _salt(self) -> str:
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
        body = vllm.stream_body(
            self.served, ids, max_tokens, self.end_ids, draw, self._salt(), interval or _INTERVAL
        )
        return TokenStream(self, body)


class TokenStream:
    """One completion as it arrives.

    Attributes
    ----------
    tokens : list of int
        What was taken so far.
    """

    def __init__(self, role: RemoteRole, body: Json) -> None:
        self._role, self._most = role, int(body["max_tokens"])
        self.tokens: list[int] = []
        self._ready: list[int] = []
        self._ended = False
        self._arrived: queue.SimpleQueue[tuple[list[int], bool] | BaseException] = (
            queue.SimpleQueue()
        )
        self._call = scope.get().start(self._read(body))
        # A call that was cancelled before it began has said nothing.
        self._call.add_done_callback(lambda _: self._arrived.put(asyncio.CancelledError()))

    async def _read(self, body: Json) -> None:
        ended = False
        count = pieces = 0
        try:
            async for event in self._role.client.events(vllm.COMPLETIONS, body):
                await self._role.watch.recognise(event)
                ids, ended = vllm.stream_tokens(event, self._role.width)
                count, pieces = count + len(ids), pieces + 1
                if count > self._most or pieces > self._most + _EMPTY:
                    raise Nonsense("more of an answer than was asked for")
                self._arrived.put((ids, ended))
        except Nonsense as error:
            self._role.client.breaker.failed(f"the {self._role.name}'s engine gave {error}")
            self._arrived.put(self._role.client.fault(str(error)))
        except BaseException as error:  # handed to whoever takes, cancellation included
            self._arrived.put(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._role.client.breaker.succeeded()
            if not ended:
                self._arrived.put(self._role.client.fault("an answer without its end"))

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
