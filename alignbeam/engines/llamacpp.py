"""llama.cpp's server: what is asked, and how its answers are read (builds of 2025 and later).

``/completion`` gives the best n with their log-softmax over the whole vocabulary, before any
sampler, and of the sampled token in any case. It takes no named ids, but the samplers are ours to
choose. So named ids cost a second question: their logits are raised by one amount, all other
tokens cut off, and the softmax over what is left is asked for (``post_sampling_probs``); one more
token, of which the first question told the log-probability, says how much is cut off.

What is sampled would be left out of the answer where its bytes are a part of a character, numbers
and streamed tokens alike. So what decides nothing is sampled here: a token with a text of its own;
and a completion is asked for in pieces of some tokens, each a question, rather than streamed.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from alignbeam.engines.client import EngineClient, Json
from alignbeam.engines.dialect import (
    GREEDY,
    Contact,
    Dialect,
    Draw,
    Line,
    Nonsense,
    Numbers,
    Query,
    as_id,
    as_log,
    distrusting,
    linked,
)
from alignbeam.errors import EngineShortfall

COMPLETION: Final = "/completion"
#: llama.cpp writes log 0 as the lowest float.
_LOG_ZERO: Final = -1e30
#: What a token's logit is raised by where it is to be sampled for sure.
_FORCE: Final = 1e6
#: What named ids' logits are raised by: far above all others, and floats are dense there still.
_RAISE: Final = 160.0
#: How much more likely than all named ids the token is that is sampled beside them, nats.
_AHEAD: Final = 16.0
#: Best tokens that are asked for at least: one of them has a text of its own.
_LEAST: Final = 16
#: Seeds are 32 bits, of which one value stands for "any".
_SEEDS: Final = 2**32 - 1
#: How far two ways to ask for a log-probability may be apart, nats.
_SAME: Final = 0.01
#: What is wanted of an answer; it would hold the prompt and all settings as well.
_FIELDS: Final = ["model", "tokens", "completion_probabilities", "stop_type"]

_Answer = TypeVar("_Answer")


class LlamaCpp(Dialect):
    """See ``Dialect``; ``plain`` is a token with a text of its own."""

    engine = "llama.cpp"
    positions = "--ctx-size, for each of its --parallel slots,"
    salts = False

    def __init__(self, served: str, root: str, window: int, width: int, plain: int) -> None:
        super().__init__(served, root, window, width)
        self._plain = plain

    @classmethod
    async def examine(cls, contact: Contact) -> Self:
        """See ``Dialect``; also hold both ways to ask for a number against each other."""
        client, served = contact.client, contact.served
        name = client.name
        props = await client.get("/props")
        window = _at(props, "default_generation_settings", "n_ctx")
        width = _at(contact.models[served], "meta", "n_vocab")
        root = props.get("model_path")
        if not isinstance(window, int) or not isinstance(width, int) or not isinstance(root, str):
            raise EngineShortfall(
                f"the {name}'s engine does not tell n_ctx, n_vocab and model_path, as llama.cpp's "
                "server does from 2025 on"
            )
        if contact.config.tokenizer is None and not Path(root).is_file():
            raise EngineShortfall(
                f"the {name}'s engine was started with {root}, which is not here; set "
                f"{name}.tokenizer to that file, or to the model's folder or hub id"
            )
        said, _ = await cls(served, root, window, width, 0).tokenize(client, "a")
        if not isinstance(said, list) or not said:
            raise EngineShortfall(f"the {name}'s engine does not tokenize")
        found = cls(served, root, window, width, as_id(said[-1], width))
        await found._check_ways(client, contact.best)
        return found

    async def _check_ways(self, client: EngineClient, best: int) -> None:
        line = _Bare(client)
        query = Query((self._plain,), best=max(best, _LEAST))
        try:
            (raw,) = await self.numbers(line, [query])
            ids = [i for i, _ in raw.best(_LEAST)]
            table, pivot = await self._raw(line, query, 1, self._plain)
            named = await self._named(line, query, ids, table, pivot)
            if max(abs(named[i] - raw.logprobs[i]) for i in ids) > _SAME:
                raise Nonsense("other log-probabilities of named tokens than of its best ones")
        except Nonsense as error:
            raise EngineShortfall(
                f"the {client.name}'s engine gave {error}; take a build of llama.cpp of 2025 or "
                "later, without settings that replace its samplers"
            ) from error

    async def tokenize(self, client: EngineClient, text: str) -> tuple[object, int | None]:
        """See ``Dialect``."""
        body = {"content": text, "add_special": False, "parse_special": False}
        said = await client.post("/tokenize", body, checking=True)
        window = _at(
            await client.get("/props", checking=True), "default_generation_settings", "n_ctx"
        )
        return said.get("tokens"), window if isinstance(window, int) else None

    async def numbers(self, line: Line, queries: Sequence[Query]) -> list[Numbers]:
        """See ``Dialect``."""
        found: dict[int, Numbers] = {}

        async def ask(places: Sequence[int]) -> None:
            for place in places:
                found[place] = await line.whole(self._one(line, queries[place]))

        await asyncio.gather(*(ask(places) for places in _in_turn(queries)))
        return [found[place] for place in range(len(queries))]

    async def _one(self, line: Line, query: Query) -> Numbers:
        if query.draw != GREEDY:
            answer = await line.post(COMPLETION, _drawn(query.ids, 1, query.draw, query.forbidden))
            (chosen,) = _tokens(answer, 1, self.width)
            return Numbers(chosen)
        if query.ahead and query.free and not query.names:
            path = await self._path(line, query)
            if path is not None:
                return path
        count = max(query.best, len(query.forbidden) + 1, _LEAST)
        forced = self._plain if query.only is None else query.only
        table, pivot = await self._raw(line, query, count, forced)
        missing = [i for i in dict.fromkeys(query.names) if i not in table]
        if missing:
            table.update(await self._named(line, query, missing, table, pivot))
        numbers = Numbers(-1, table)
        numbers.chosen = numbers.best_but(query.forbidden) if query.only is None else query.only
        numbers.check(query, query.names, self.width)
        return numbers

    async def _raw(
        self, line: Line, query: Query, count: int, forced: int
    ) -> tuple[dict[int, float], int]:
        """Ask for the ``count`` best and ``forced``; return also one that has a text of its own."""
        body = _body(query.ids, 1) | {
            "n_probs": count,
            "logit_bias": [[forced, _FORCE]],
            "samplers": ["temperature"],
            "temperature": 0.0,
        }
        (entry,) = _entries(await line.post(COMPLETION, body), 1)
        return _read_raw(entry, count, forced, self.width)

    async def _named(
        self, line: Line, query: Query, names: Sequence[int], table: Mapping[int, float], pivot: int
    ) -> dict[int, float]:
        """Return the log-probabilities of ids; ``table`` holds the best one's and the pivot's."""
        best = max(table.values())
        # However likely it is, the pivot comes to lie this far above what is raised by no more.
        above = best - table[pivot] + _AHEAD
        if not math.isfinite(above):
            raise Nonsense("nothing that has a text of its own among its best tokens")
        raised = {i: _RAISE for i in names} | {pivot: _RAISE + above}
        body = _body(query.ids, 1) | {
            "n_probs": len(raised),
            "post_sampling_probs": True,
            "logit_bias": [[i, bias] for i, bias in raised.items()],
            "samplers": ["top_k"],
            "top_k": len(raised),
        }
        (entry,) = _entries(await line.post(COMPLETION, body), 1)
        found = _read_shares(entry, raised, pivot, self.width)
        known = found.pop(pivot) - best - _AHEAD
        values = {i: min(value - known, 0.0) for i, value in found.items()}
        if any(i not in values and i != pivot for i in names):
            # So improbable that a float's range ends: asked for among all there are.
            everything, _ = await self._raw(line, query, self.width, self._plain)
            values = everything | values
        return {i: values[i] for i in names if i != pivot} | {pivot: table[pivot]}

    async def _path(self, line: Line, query: Query) -> Numbers | None:
        """Return the numbers along the engine's own path; None where some are left out."""
        body = _drawn(query.ids, 1 + query.ahead, GREEDY) | {"n_probs": max(query.best, 1)}
        answer = await line.post(COMPLETION, body)
        tokens = _tokens(answer, 1 + query.ahead, self.width)
        entries = _entries(answer, None)
        if len(entries) != len(tokens):
            return None
        path = []
        for token, entry in zip(tokens, entries, strict=True):
            table, _ = _read_raw(entry, query.best, token, self.width)
            path.append(Numbers(token, table))
            path[-1].check(query, (), self.width)
        return linked(path, 1 + query.ahead)

    async def stream(
        self,
        line: Line,
        ids: Sequence[int],
        max_tokens: int,
        ends: Sequence[int],
        draw: Draw,
        interval: int,
    ) -> AsyncIterator[tuple[list[int], bool]]:
        """See ``Dialect``; what ends an answer for the engine only is gone on after."""
        said: list[int] = []
        ended = False
        while not ended:
            due = min(interval, max_tokens - len(said))
            answer = await line.post(COMPLETION, _drawn([*ids, *said], due, draw, at=len(said)))
            new = _tokens(answer, due, self.width)
            if len(new) < due and answer.get("stop_type") == "limit":
                raise Nonsense("an answer that ends before its end token or length")
            if at := [n for n, token in enumerate(new) if token in ends][:1]:
                new = new[: at[0] + 1]
            said += new
            ended = bool(at) or len(said) >= max_tokens
            yield new, ended

    def identity(self, answer: Mapping[str, Any]) -> tuple[object, object]:
        """See ``Dialect``: it names its model, and itself not at all."""
        return answer.get("model"), None


class _Bare:
    """A line to an engine that no role has yet."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self.post, self.events = client.post, client.events

    async def whole(self, call: Awaitable[_Answer]) -> _Answer:
        return await call

    def salt(self) -> str:
        return ""


def _in_turn(queries: Sequence[Query]) -> list[list[int]]:
    """Return queries' places; where one prompt goes on from another it waits for that one.

    The server keeps a cache for each slot: asked at once, each slot would read the prompt.
    """
    order = sorted(range(len(queries)), key=lambda place: queries[place].ids)
    groups: list[list[int]] = []
    for place in order:
        ids = queries[place].ids
        if groups and ids[: len(begun := queries[groups[-1][-1]].ids)] == begun:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _body(ids: Sequence[int], count: int) -> Json:
    """Return what every question says, whatever the server's own defaults are."""
    return {
        "prompt": list(ids),
        "n_predict": count,
        "return_tokens": True,
        "response_fields": _FIELDS,
        "seed": 0,
        "mirostat": 0,
        "min_keep": 0,
        "ignore_eos": False,  # else it would never choose an end
        "reasoning_budget_tokens": -1,
        "backend_sampling": False,
    }


def _drawn(
    ids: Sequence[int], count: int, draw: Draw, forbidden: Iterable[int] = (), at: int = 0
) -> Json:
    """Return the question for ``count`` tokens, the first of which has the place ``at``."""
    body = _body(ids, count) | {"temperature": draw.temperature, "samplers": ["temperature"]}
    if draw.temperature > 0:
        body["samplers"] = ["temperature", "top_k", "top_p"]
        body |= {"top_k": draw.top_k, "top_p": draw.top_p, "seed": (draw.seed + at) % _SEEDS}
    if barred := [[i, False] for i in forbidden]:
        body["logit_bias"] = barred
    return body


@distrusting
def _tokens(answer: Mapping[str, Any], most: int, width: int) -> list[int]:
    ids = answer["tokens"]
    if not isinstance(ids, list) or not 1 <= len(ids) <= most:
        raise Nonsense(f"an answer without 1 to {most} token ids (return_tokens)")
    return [as_id(i, width) for i in ids]


@distrusting
def _entries(answer: Mapping[str, Any], due: int | None) -> list[Mapping[str, Any]]:
    """Return what is said of each sampled token."""
    entries = answer.get("completion_probabilities", [])
    if not isinstance(entries, list) or due not in (None, len(entries)):
        raise Nonsense("no log-probabilities of its tokens")
    return entries


@distrusting
def _read_raw(
    entry: Mapping[str, Any], count: int, sampled: int, width: int
) -> tuple[dict[int, float], int]:
    """Return the log-probabilities of the best and of the sampled token; and a pivot.

    That is the best one whose bytes are whole characters, else the sampled one.
    """
    if as_id(entry["id"], width) != sampled:
        raise Nonsense("another token than was to be sampled")
    told = entry["top_logprobs"]
    table = {as_id(one["id"], width): _log(one["logprob"]) for one in told}
    if len(told) < min(count, width) or len(table) != len(told):
        raise Nonsense(f"{len(table)} log-probabilities where {count} were due")
    if any(b > a for a, b in itertools.pairwise(table.values())):
        raise Nonsense("best tokens that are not in their order")
    pivot = next((as_id(one["id"], width) for one in told if _whole(one["bytes"])), sampled)
    own = _log(entry["logprob"])
    if abs(table.setdefault(sampled, own) - own) > _SAME:
        raise Nonsense("two log-probabilities of one token")
    return table, pivot


@distrusting
def _read_shares(
    entry: Mapping[str, Any], raised: Mapping[int, float], pivot: int, width: int
) -> dict[int, float]:
    """Return the log of each raised token's share."""
    told = entry["top_probs"]
    shares = {as_id(one["id"], width): one["prob"] for one in told}
    if len(shares) != len(told) or not {pivot} <= shares.keys() <= raised.keys():
        raise Nonsense("probabilities of other tokens than were asked for")
    if any(isinstance(p, bool) or not 0 < p <= 1.001 for p in shares.values()):
        raise Nonsense("a probability that is none")
    if abs(math.fsum(shares.values()) - 1) > _SAME:
        raise Nonsense("probabilities that do not add up to 1")
    return {i: math.log(p) for i, p in shares.items()}


def _whole(data: Sequence[int]) -> bool:
    try:
        bytes(data).decode()
    except UnicodeDecodeError:
        return False
    return True


def _log(value: object) -> float:
    return as_log(value, _LOG_ZERO)


def _at(told: Mapping[str, Any], *names: str) -> object:
    """Return what lies under some names of an answer; None where there is nothing."""
    found: object = told
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found
