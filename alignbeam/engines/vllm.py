"""vLLM's token API: what is asked, and how its answers are read.

One engine is asked one kind of question. In vLLM's first model runner a batch that holds a request
with ``logprob_token_ids`` answers every other request of the batch without its best n, so an
anchor's engine is only asked for the best, and a target's or judge's only for named ids.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from alignbeam.engines.client import EngineClient, Json
from alignbeam.engines.dialect import (
    Contact,
    Dialect,
    Draw,
    Line,
    Nonsense,
    Numbers,
    Query,
    as_log,
    distrusting,
    is_id,
    linked,
)
from alignbeam.errors import EngineFault, EngineShortfall

COMPLETIONS: Final = "/v1/completions"
#: ``logprob_token_ids`` holds no more.
MAX_NAMES: Final = 128
#: Prompts of one HTTP request.
_MAX_PROMPTS: Final = 16
#: vLLM writes log 0 as this.
_LOG_ZERO: Final = -9999.0
#: What a forbidden id's logit is lowered by; the most that the API takes.
_FORBID: Final = -100.0
#: An id that no vocabulary has: the refusal tells how many ids there are.
_BEYOND: Final = 2**30
#: Tokens in which requests that were sent together are sure to meet in a batch.
_TOGETHER: Final = 32


class Vllm(Dialect):
    """See ``Dialect``; ``best``: whether it is asked for its best tokens, else for named ids."""

    engine = "vLLM"
    positions = "--max-model-len"
    signs = True
    names_along = MAX_NAMES

    def __init__(self, served: str, root: str, window: int, width: int, best: bool) -> None:
        super().__init__(served, root, window, width)
        self._best = best

    @classmethod
    async def examine(cls, contact: Contact) -> Self:
        """See ``Dialect``."""
        client, served = contact.client, contact.served
        window = contact.models[served].get("max_model_len")
        root = _root(contact.models, served)
        if not isinstance(window, int):
            raise EngineShortfall(
                f"the {client.name}'s engine does not tell max_model_len, as vLLM does; "
                "it cannot be used"
            )
        width = await _width(client, served)
        if contact.best:
            await _gives_best(client, served, contact.best)
        return cls(served, root, window, width, contact.best > 0)

    async def tokenize(self, client: EngineClient, text: str) -> tuple[object, int | None]:
        """See ``Dialect``."""
        body = {"model": self.served, "prompt": text, "add_special_tokens": False}
        said = await client.post("/tokenize", body, checking=True)
        window = said.get("max_model_len")
        return said.get("tokens"), window if isinstance(window, int) else None

    async def numbers(self, line: Line, queries: Sequence[Query]) -> list[Numbers]:
        """See ``Dialect``."""
        if self._best:  # whoever only wants the choice must not ask in the other kind
            queries = [q if q.best or q.names else replace(q, best=1) for q in queries]
        asks = packed(queries)
        answers = await asyncio.gather(*(line.whole(self._one(line, ask)) for ask in asks))
        return unpacked(asks, answers, len(queries))

    async def _one(self, line: Line, ask: Ask) -> list[Numbers]:
        answer = await line.post(COMPLETIONS, ask.body(self.served, line.salt()))
        return ask.read(answer, self.width)

    async def takes_both(
        self, client: EngineClient, named: str, ids: Sequence[int], best: int
    ) -> bool:
        """See ``Dialect``; it does not where fewer best tokens come than were asked for."""
        prompt, long = tuple(ids), {"max_tokens": _TOGETHER, "ignore_eos": True}
        asks = [
            Ask(query, list(query.names), [], [prompt]).body(served, "") | long
            for served, query in (
                (self.served, Query(prompt, best=best)),
                (named, Query(prompt, names=(0, 1))),
            )
            for _ in range(3)
        ]
        answers = await asyncio.gather(*(client.post(COMPLETIONS, body) for body in asks))
        told = [table for a in answers[:3] for table in a["choices"][0]["logprobs"]["top_logprobs"]]
        return min(map(len, told)) >= min(best, self.width)

    async def stream(
        self,
        line: Line,
        ids: Sequence[int],
        max_tokens: int,
        ends: Sequence[int],
        draw: Draw,
        interval: int,
    ) -> AsyncIterator[tuple[list[int], bool]]:
        """See ``Dialect``."""
        body = {
            "model": self.served,
            "prompt": list(ids),
            "max_tokens": max_tokens,
            "stop_token_ids": list(ends),
            "ignore_eos": True,  # the engine's own idea of an end; ours are in stop_token_ids
            "return_token_ids": True,
            "stream_interval": interval,
            **_plain(line.salt()),
            **_how(draw),
        }
        async for event in line.events(COMPLETIONS, body):
            yield _stream_tokens(event, self.width)

    def signed_later(self, piece: Mapping[str, Any]) -> bool:
        """See ``Dialect``: only the last piece is signed."""
        choices = piece.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        return isinstance(first, dict) and first.get("finish_reason") is None

    def identity(self, answer: Mapping[str, Any]) -> tuple[object, object]:
        """See ``Dialect``."""
        return answer.get("model"), answer.get("system_fingerprint")


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
            **_how(query.draw),
        }
        if query.best == 0:
            # Without names the row would be one of the other kind: see the module's docstring.
            body["logprob_token_ids"] = self.names or [0]
        if query.forbidden:
            body["logit_bias"] = {str(i): _FORBID for i in query.forbidden}
        if query.only is not None:
            body["allowed_token_ids"] = [query.only]
        return body

    @distrusting
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
        found = [_numbers(placed[n], width) for n in range(len(choices))]
        for path in found:
            for numbers in path:
                numbers.check(self.query, self.names, width)
        return [linked(path, 1 + self.query.ahead) for path in found]


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


async def _width(client: EngineClient, served: str) -> int:
    """Return how many logit columns the model has: the refusal of an id beyond them says so."""
    body = Ask(Query((0,)), [_BEYOND], [], [(0,)]).body(served, "")
    try:
        await client.post(COMPLETIONS, body)
    except EngineFault as error:
        found = re.search(r"[Vv]ocabulary size: (\d+)", str(error))
        if found:
            return int(found[1])
        raise EngineShortfall(
            f"the {client.name}'s engine does not take named ids (logprob_token_ids): {error}; "
            "vLLM does from 0.32 on"
        ) from error
    raise EngineShortfall(
        f"the {client.name}'s engine ignores named ids (logprob_token_ids); vLLM takes them from "
        "0.32 on"
    )


async def _gives_best(client: EngineClient, served: str, best: int) -> None:
    body = Ask(Query((0,), best=best), [], [], [(0,)]).body(served, "")
    try:
        await client.post(COMPLETIONS, body)
    except EngineFault as error:
        raise EngineShortfall(
            f"the {client.name}'s engine does not give the {best} best tokens: {error}; start it "
            f"with --max-logprobs {best} or more"
        ) from error


def _root(models: Mapping[str, Mapping[str, Any]], served: str) -> str:
    """Return what the engine loaded; an adapter has its base model's tokenizer."""
    model = models[served]
    while isinstance(parent := model.get("parent"), str) and parent in models:
        model = models[parent]
    return str(model.get("root") or served)


@distrusting
def _stream_tokens(event: Mapping[str, Any], width: int) -> tuple[list[int], bool]:
    """Return the new tokens of an event, and whether the engine ends there."""
    choices = event.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Nonsense("a piece of an answer without its choice")
    ids = choices[0].get("token_ids")
    if not isinstance(ids, list) or not all(is_id(i, width) for i in ids):
        raise Nonsense("a piece of an answer without token ids (return_token_ids)")
    finish = choices[0].get("finish_reason")
    if finish not in (None, "stop", "length"):
        raise Nonsense(f"an answer that ends with {str(finish)[:20]!r}")
    return ids, finish is not None


def _how(draw: Draw) -> Json:
    return {
        "temperature": draw.temperature,
        "top_k": draw.top_k,
        "top_p": draw.top_p,
        "seed": draw.seed,
    }


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


def _numbers(choice: Mapping[str, Any], width: int) -> list[Numbers]:
    """Return what is said of tokens in a row."""
    said = choice.get("logprobs")
    try:
        pairs = list(zip(said["tokens"], said["top_logprobs"], strict=True))  # type: ignore[index]
        return [
            Numbers(_token_id(token, width), {_token_id(t, width): _log(v) for t, v in of.items()})
            for token, of in pairs
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, Nonsense):
            raise
        raise Nonsense("no log-probabilities of its tokens") from error


def _token_id(token: object, width: int) -> int:
    text = str(token).removeprefix("token_id:")
    if not text.isdecimal() or not is_id(int(text), width):
        raise Nonsense("a token id that the vocabulary does not have")
    return int(text)


def _log(value: object) -> float:
    return as_log(value, _LOG_ZERO, " (the engine needs --logprobs-mode raw_logprobs)")
