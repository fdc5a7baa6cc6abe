"""SGLang's native API: what is asked, and how its answers are read.

``/generate`` takes token ids, and gives in one answer the best n (``top_logprobs_num``) and named
ids (``token_ids_logprob``). Written from its sources of 0.5 (``managers/io_struct.py``,
``managers/tokenizer_manager.py``, ``layers/sampler.py``) and held against an engine of that shape,
not against SGLang itself. Its log-probabilities come after ``logit_bias`` and the temperature: so
questions have neither, and what must not be chosen is left out here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Self

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
from alignbeam.errors import EngineFault, EngineShortfall

GENERATE: Final = "/generate"
#: An id that no vocabulary has: the refusal tells how many ids there are.
_BEYOND: Final = 2**30
#: A log-probability of less is 0: half precision has no such number.
_LOG_ZERO: Final = -1e30
#: What a forbidden id's logit is lowered by where a token is drawn.
_FORBID: Final = -1e4


class SGLang(Dialect):
    """See ``Dialect``."""

    engine = "SGLang"
    positions = "--context-length"
    names_along = 512  # it names any number, but an answer should stay small

    @classmethod
    async def examine(cls, contact: Contact) -> Self:
        """See ``Dialect``."""
        client, served, best = contact.client, contact.served, contact.best
        name = client.name
        window = contact.models[served].get("max_model_len")
        if not isinstance(window, int):
            raise EngineShortfall(
                f"the {name}'s engine does not tell max_model_len; take SGLang 0.5 or newer"
            )
        info = await _info(client)
        root = info.get("tokenizer_path") or info.get("model_path") or served
        width = await _width(client)
        found = cls(served, str(root), window, width)
        query = Query((0,), best=best, names=(0,))
        try:
            _read(await client.post(GENERATE, _asked(query, "")), query, width)
        except (EngineFault, Nonsense) as error:
            raise EngineShortfall(
                f"the {name}'s engine does not give the {best} best tokens and named ones "
                f"(token_ids_logprob): {error}; take SGLang 0.5 or newer"
            ) from error
        return found

    async def tokenize(self, client: EngineClient, text: str) -> tuple[object, int | None]:
        """See ``Dialect``."""
        body = {"model": self.served, "prompt": text, "add_special_tokens": False}
        said = await client.post("/tokenize", body, checking=True)
        # What ``/tokenize`` tells of positions are the tokenizer's own.
        listed = await client.get("/v1/models", checking=True)
        cards = listed.get("data")
        for card in cards if isinstance(cards, list) else ():
            if isinstance(card, dict) and card.get("id") == self.served:
                window = card.get("max_model_len")
                return said.get("tokens"), window if isinstance(window, int) else None
        return said.get("tokens"), None

    async def numbers(self, line: Line, queries: Sequence[Query]) -> list[Numbers]:
        """See ``Dialect``."""
        asked = (line.whole(self._one(line, query)) for query in queries)
        return list(await asyncio.gather(*asked))

    async def _one(self, line: Line, query: Query) -> Numbers:
        answer = await line.post(GENERATE, _asked(query, line.salt()))
        return _read(answer, query, self.width)

    async def stream(
        self,
        line: Line,
        ids: Sequence[int],
        max_tokens: int,
        ends: Sequence[int],
        draw: Draw,
        interval: int,
    ) -> AsyncIterator[tuple[list[int], bool]]:
        """See ``Dialect``; the engine has an interval of its own (``--stream-interval``)."""
        body = _body(ids, max_tokens, draw, line.salt())
        body["sampling_params"] |= {"stop_token_ids": list(ends), "ignore_eos": True}
        count = 0
        async for event in line.events(GENERATE, body):
            new, ended = _stream_tokens(event, count, ends, self.width)
            count += len(new)
            yield new, ended

    def identity(self, answer: Mapping[str, Any]) -> tuple[object, object]:
        """See ``Dialect``: it tells the version of its weights, which updates in place change."""
        meta = answer.get("meta_info")
        return None, meta.get("weight_version") if isinstance(meta, dict) else None


async def _info(client: EngineClient) -> Json:
    """Return what it says of its model; the older name of the page goes first."""
    try:
        return await client.get("/get_model_info")
    except EngineFault:
        return await client.get("/model_info")


async def _width(client: EngineClient) -> int:
    """Return how many logit columns the model has: the refusal of an id beyond them says so."""
    try:
        await client.post(GENERATE, _body([_BEYOND], 1, GREEDY, ""))
    except EngineFault as error:
        found = re.search(r"vocab size \((\d+)\)", str(error))
        if found:
            return int(found[1])
        raise
    raise EngineShortfall(
        f"the {client.name}'s engine takes ids that no vocabulary has; take SGLang 0.5 or newer"
    )


def _body(ids: Sequence[int], count: int, draw: Draw, salt: str) -> Json:
    """Return what every question says, whatever the engine's own defaults are."""
    body: Json = {
        "input_ids": list(ids),
        "sampling_params": {
            "max_new_tokens": count,
            "temperature": draw.temperature,
            "top_k": draw.top_k or -1,
            "top_p": draw.top_p,
            "min_p": 0.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "repetition_penalty": 1.0,
            "sampling_seed": draw.seed,
        },
    }
    return {**body, "extra_key": salt} if salt else body


def _asked(query: Query, salt: str) -> Json:
    count = 1 + (query.ahead if query.free else 0)
    body = _body(query.ids, count, query.draw, query.salt or salt)
    if query.draw != GREEDY:
        if query.forbidden:
            barred = {str(i): _FORBID for i in query.forbidden}
            body["sampling_params"]["logit_bias"] = barred
        return body
    body |= {
        "return_logprob": True,
        "logprob_start_len": -1,
        "top_logprobs_num": max(1 + len(query.forbidden), query.best),
        "token_ids_logprob": _named(query),
    }
    return body


def _named(query: Query) -> list[int]:
    only = () if query.only is None else (query.only,)
    return list(dict.fromkeys((*query.names, *only)))


@distrusting
def _read(answer: Mapping[str, Any], query: Query, width: int) -> Numbers:
    """Return what an answer says of its tokens.

    Raises
    ------
    Nonsense
        Anything is missing, no number, or impossible.
    """
    meta = answer["meta_info"]
    if query.draw != GREEDY:
        (drawn,) = answer["output_ids"]
        chosen = as_id(drawn, width)
        if chosen in query.forbidden:
            raise Nonsense("a token that was not to be chosen")
        return Numbers(chosen)
    names = _named(query)
    tokens, best = meta["output_token_logprobs"], meta["output_top_logprobs"]
    named = meta["output_token_ids_logprobs"] if names else [[]] * len(tokens)
    path = []
    for own, top, asked in zip(tokens, best, named, strict=True):
        told = _table(top, width)
        if len(told) < min(query.best, width):
            raise Nonsense(f"{len(told)} log-probabilities where {query.best} were due")
        told |= _table(asked, width)
        told |= _table([own], width)
        numbers = Numbers(as_id(own[1], width), told)
        if not query.free:
            only = query.only
            numbers.chosen = numbers.best_but(query.forbidden) if only is None else only
        numbers.check(query, names, width)
        path.append(numbers)
    return linked(path, 1 + query.ahead)


def _table(told: Sequence[Sequence[Any]], width: int) -> dict[int, float]:
    """Return log-probabilities by id, of rows that begin with both."""
    return {as_id(row[1], width): as_log(row[0], _LOG_ZERO) for row in told}


@distrusting
def _stream_tokens(
    event: Mapping[str, Any], count: int, ends: Sequence[int], width: int
) -> tuple[list[int], bool]:
    """Return the new tokens of an event after ``count``, and whether the engine ends there.

    An event holds all tokens so far, or with ``--incremental-streaming-output`` the new ones.
    """
    ids = [as_id(i, width) for i in event["output_ids"]]
    meta = event["meta_info"]
    finish = meta["finish_reason"]
    whole = meta["completion_tokens"] == len(ids)
    if not whole and meta["completion_tokens"] != count + len(ids):
        raise Nonsense("a piece of an answer that does not go on from the one before")
    new = ids[count:] if whole else ids
    if finish is None:
        return new, False
    if finish["type"] not in ("stop", "length"):
        raise Nonsense(f"an answer that ends with {str(finish['type'])[:20]!r}")
    matched = finish.get("matched")
    if finish["type"] == "stop" and matched in ends and new[-1:] != [matched]:
        new.append(as_id(matched, width))
    return new, True
