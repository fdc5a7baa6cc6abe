"""Can this engine play this role? Each shortfall is an error that names what mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alignbeam.config import RoleConfig
from alignbeam.engines.client import EngineClient
from alignbeam.engines.dialect import Contact, Dialect, Query
from alignbeam.engines.llamacpp import LlamaCpp
from alignbeam.engines.sglang import SGLang
from alignbeam.engines.vllm import Vllm
from alignbeam.errors import EngineFault, EngineShortfall

if TYPE_CHECKING:
    from alignbeam.engines.role import RemoteRole

#: Where the tokenizers of two models that are not the same differ; no control tokens.
PROBE: Final = "The quick brown fox's 12,345 jumps: naïve café, 你好, привет 🙂\n\tdef f(x): x"
#: What each kind of engine writes as the owner of its models; any other is spoken to as vLLM.
_DIALECTS: Final[dict[object, type[Dialect]]] = {"llamacpp": LlamaCpp, "sglang": SGLang}
#: How far a log-probability may move between two runs of the same weights in half precision, nats.
_SAME: Final = 0.5
#: Ids that are named to recognise a model.
_PROBED: Final = 16


async def examine(client: EngineClient, config: RoleConfig, best: int) -> Dialect:
    """Find out which kind of engine this is, and what must be known before the tokenizer is loaded.

    Raises
    ------
    EngineUnavailable, EngineShortfall
        See ``RemoteRole.from_config``.
    """
    name = client.name
    try:
        listed = await client.get("/v1/models")
    except EngineFault as error:
        raise _no_engine(client, error) from error
    told = listed.get("data")
    rows = [m for m in told if isinstance(m, dict)] if isinstance(told, list) else []
    models = {key: m for m in rows if isinstance(key := m.get("id"), str)}
    served = config.served_name or (next(iter(models)) if len(models) == 1 else None)
    if served is None or served not in models:
        raise EngineShortfall(
            f"the {name}'s engine serves {', '.join(models) or 'nothing'}; "
            f"set {name}.served_name to one of these"
        )
    owner = models[served].get("owned_by")
    dialect = _DIALECTS.get(owner, Vllm) if isinstance(owner, str) else Vllm
    try:
        return await dialect.examine(Contact(client, config, served, models, best))
    except EngineFault as error:
        raise _no_engine(client, error) from error


def _no_engine(client: EngineClient, error: EngineFault) -> EngineShortfall:
    locked = "401" in str(error)
    hint = f"; set {client.name}.key_env to the variable that holds its key" if locked else ""
    return EngineShortfall(f"{client.url} is no engine for the {client.name}: {error}{hint}")


async def takes_both(best: RemoteRole, named: RemoteRole) -> None:
    """Check that one engine answers both kinds of questions in one batch.

    Raises
    ------
    EngineShortfall
        It gives fewer of the best tokens than were asked for: see ``engines.vllm``.
    """
    ids = best.tokenizer.encode(PROBE, add_special_tokens=False)
    few = min(best.most, _PROBED)
    if not await best.dialect.takes_both(best.client, named.dialect.served, ids, few):
        raise EngineShortfall(
            f"the {best.name}'s engine is the {named.name}'s too, and mixes up their answers, as "
            "vLLM's first model runner does; start one engine for each, or this one with "
            "VLLM_USE_V2_MODEL_RUNNER=1"
        )


async def compare(role: RemoteRole) -> None:
    """Hold a role against its engine: the same ids for a text, and the numbers of the start.

    Raises
    ------
    EngineUnavailable, EngineShortfall
        Not there, or another model.
    """
    try:
        said, window = await role.dialect.tokenize(role.client, PROBE)
    except EngineFault as error:
        raise EngineShortfall(f"the {role.name}'s engine does not tokenize: {error}") from error
    ours = role.tokenizer.encode(PROBE, add_special_tokens=False)
    if said != ours:
        raise EngineShortfall(
            f"the {role.name}'s engine has another tokenizer than {role.source}; set "
            f"{role.name}.tokenizer to the folder or hub id of the model that it serves"
        )
    if window is not None and window < role.window:
        raise EngineShortfall(
            f"the {role.name}'s engine now has {window} positions, and had {role.window}; start it "
            f"with {role.dialect.positions} {role.window}"
        )
    query = Query(tuple(ours))
    if role.most:
        query = Query(tuple(ours), best=min(role.most, _PROBED))
    else:
        step = max(1, role.width // _PROBED)
        query = Query(tuple(ours), names=tuple(range(0, role.width, step))[:_PROBED])
    (numbers,) = await role.numbers([query], checking=True)
    known = role.watch.probe
    if not known:
        role.watch.probe = numbers.logprobs
        return
    shared = known.keys() & numbers.logprobs.keys()
    now = numbers.logprobs
    far = [i for i in shared if known[i] != now[i] and not abs(known[i] - now[i]) <= _SAME]
    if far or 2 * len(shared) < len(known):
        raise EngineShortfall(
            f"the {role.name}'s engine serves another model than at the start, under the same "
            "name; start this process again to take it"
        )
