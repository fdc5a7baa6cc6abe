"""What a model on an engine says comes next: numbers of the tokens that are asked for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from alignbeam.config import BeamConfig
from alignbeam.decoding.beam import Beam
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.engines.dialect import GREEDY, Draw, Numbers, Query
from alignbeam.engines.rows import Path, RemoteRows
from alignbeam.errors import ConfigError
from alignbeam.result import Wish

if TYPE_CHECKING:
    from alignbeam.engines.role import TokenStream

#: Tokens per streamed piece where stop strings may end the answer; else the role's own number.
_STOP_INTERVAL = 4
#: Tokens from which on a prompt is worth reading beforehand: a shorter one takes about as long as
#: one token, and where it fills no block of the engine's prefix cache it would be read twice.
_LONG = 256
#: Keeps the draws of one beam at different places apart.
_STRIDE = 0x9E3779B97F4A7C15


class Wanted(NamedTuple):
    """What is to be known of a row: log-probabilities of ``names`` after it and ``path``.

    ``ahead``: after how many tokens further, too, of those that the engine itself would take.
    """

    row: int
    path: Path = ()
    names: Sequence[int] = ()
    ahead: int = 0


class RemoteTokens(NextTokens):
    """``NextTokens`` over rows whose model is on an engine; asked when a number is needed.

    Rows of one call are asked about at once. An engine that is asked for named ids says nothing
    of its second best: these are found by forbidding the better ones, one question each, which
    few steps need. ``wishes`` are the best of what is known already.

    Parameters
    ----------
    rows : RemoteRows
    indices : sequence of int
        Which of them.
    charged : callable
        Returns the context in which the engine is waited for.
    """

    local = False

    def __init__(
        self,
        rows: RemoteRows,
        indices: Sequence[int],
        charged: Callable[[], contextlib.AbstractContextManager[None]],
        *,
        ends: bool = True,
    ) -> None:
        self.role, self._rows, self._charged = rows.role, rows, charged
        self._remote = rows.role
        self._indices, self._ends = list(indices), ends

    @property
    def logits(self) -> torch.Tensor:  # type: ignore[override]
        """Nothing that an engine gives; see ``RemoteRows.logits``."""
        return self._rows.logits

    def rows(self, indices: Sequence[int]) -> RemoteTokens:
        """Return some of the rows."""
        kept = [self._indices[i] for i in indices]
        return RemoteTokens(self._rows, kept, self._charged, ends=self._ends)

    def without_ends(self) -> RemoteTokens:
        """Return the same without the role's end tokens."""
        return RemoteTokens(self._rows, self._indices, self._charged, ends=False)

    @property
    def names_along(self) -> int:
        """How many ids the engine names at each of several tokens in a row; see ``Dialect``."""
        return self._remote.dialect.names_along

    @property
    def slowness(self) -> float:
        """How busy the engine seems to be; see ``Pace``."""
        return self._remote.pace.slowness

    @property
    def finite(self) -> list[bool]:
        """True: an engine that gives no numbers raises ``EngineFault``."""
        return [True] * len(self._indices)

    @property
    def best(self) -> list[int]:
        """The most probable token of each row."""
        rows = range(len(self._indices))
        self.learn([Wanted(row) for row in rows])
        return [self._now(row).chosen for row in rows]

    def best_token(self, row: int) -> int:
        """Return the most probable token of a row."""
        return self._now(row).chosen

    def best_of(self, row: int, count: int) -> list[int]:
        """Return the ``count`` most probable tokens of a row."""
        return [token_id for token_id, _ in self.best_pairs(row, count)]

    def best_pairs(self, row: int, count: int) -> list[tuple[int, float]]:
        """Return the ``count`` most probable tokens of a row and their log-probabilities."""
        found: list[tuple[int, float]] = []
        forbidden = () if self._ends else self._remote.end_ids
        rest = 0.0 if self._ends else self._log_rest(row)
        count = min(count, self._remote.width - len(forbidden))
        known = self._said(row)
        if known is not None and count > 0 and known.chosen not in forbidden:
            found.append((known.chosen, known.logprobs[known.chosen] - rest))
        while len(found) < count:
            (said,) = self._ask([self._query(row, forbidden=(*forbidden, *(i for i, _ in found)))])
            found.append((said.chosen, said.logprobs[said.chosen] - rest))
        return found

    def logprob(self, row: int, token_id: int) -> float:
        """Log-probability of a token, nats."""
        return self.rows([row]).named([[token_id]])[0][token_id]

    def top(self, count: int, ahead: Sequence[int] = ()) -> list[list[tuple[int, float]]]:
        """Return each row's ``count`` best ids with their log-probabilities, best first.

        Parameters
        ----------
        ahead : sequence of int
            How many tokens further each row's engine is asked while it is at it: see ``told``.
        """
        self._check_count(count)
        rows = range(len(self._indices))
        due = min(count, self._remote.width)
        asked = [n for n in rows if (known := self._said(n)) is None or len(known.logprobs) < due]
        room = [self._remote.window - len(self._rows.ids[self._indices[n]]) - 1 for n in rows]
        further = [max(0, min(a, r)) for a, r in zip(ahead or [0] * len(room), room, strict=True)]
        said = self._ask([self._query(n, best=count, ahead=further[n]) for n in asked])
        for n, numbers in zip(asked, said, strict=True):
            self._keep(n, numbers)
        return [self._now(n).best(count) for n in rows]

    def told(self, row: int) -> Iterator[Numbers]:
        """Yield what is known of a row's next token, and of those after it.

        Each is the engine's word on what follows the one that it chose before.
        """
        path: Path = ()
        while (numbers := self._said(row, path)) is not None:
            yield numbers
            path += (numbers.chosen,)

    def named(self, names: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Return the log-probabilities of each row's own ``names``."""
        ends = () if self._ends else self._remote.end_ids
        self.learn([Wanted(n, names=(*ids, *ends)) for n, ids in enumerate(names)])
        found = []
        for n, ids in enumerate(names):
            numbers = self._now(n)
            logprobs = {i: numbers.logprobs[i] for i in ids}
            if not self._ends:
                rest = self._log_rest(n)
                logprobs = {
                    i: -math.inf if i in ends else value - rest for i, value in logprobs.items()
                }
            found.append(logprobs)
        return found

    def learn(self, wanted: Iterable[Wanted]) -> None:
        """Ask at once for whatever of this is not known."""
        asked = [
            w
            for w in wanted
            if (known := self._said(w.row, w.path)) is None
            or not known.logprobs.keys() >= set(w.names)
        ]
        said = self._ask([self._query(w.row, w.path, names=w.names, ahead=w.ahead) for w in asked])
        for w, numbers in zip(asked, said, strict=True):
            self._keep(w.row, numbers, w.path)

    def prefill(self) -> Callable[[], None]:
        """Have the engine read long rows while another is waited for; see ``NextTokens``."""
        names = () if self._ends else self._remote.end_ids
        asked = [n for n, i in enumerate(self._indices) if len(self._rows.ids[i]) >= _LONG]
        pending = self._remote.start([self._query(n, names=names) for n in asked])

        def wait() -> None:
            with self._charged():
                for n, numbers in zip(asked, pending(), strict=True):
                    self._keep(n, numbers)

        return wait

    def begin(self, beams: Sequence[Beam]) -> None:
        """Begin the completion of every beam; all of them are on their way before one is read."""
        for row, beam in enumerate(beams):
            if beam.live:
                self._stream(row, beam)

    def begin_after(self, row: int, beam: Beam, path: Path) -> None:
        """Begin the completion that a beam will need if it goes on with ``path``."""
        how = self._completion(beam, len(path))
        if how[0] > 0:
            self._rows.begin(self._indices[row], path, *how)

    def choose(self, row: int, beam: Beam) -> int:
        """Return the next token of a beam's completion."""
        with self._charged():
            return self._stream(row, beam).take()

    def samples(
        self, row: int, config: BeamConfig, generators: Sequence[torch.Generator]
    ) -> list[int]:
        """Draw one token with each generator's seed; the engine draws."""
        forbidden = () if self._ends else self._remote.end_ids
        draws = [_draw(config, generator, 0) for generator in generators]
        said = self._ask([self._query(row, forbidden=forbidden, draw=draw) for draw in draws])
        return [numbers.chosen for numbers in said]

    def wishes(self, row: int, count: int) -> tuple[Wish, ...]:
        """Return the ``count`` best of the tokens that were asked for, best first."""
        known = self._said(row)
        if known is None:
            return ()
        return tuple(
            Wish(i, self.role.shown([i]), math.exp(value)) for i, value in known.best(count)
        )

    def after_opening(self, opening_id: int) -> RemoteOpening:
        """Return the columns of the first step, where an opening token may be said."""
        return RemoteOpening(self, opening_id)

    def _check_count(self, count: int) -> None:
        if count > self._remote.most:
            raise ConfigError(
                f"top_b: the {self.role.name}'s engine was checked for {self._remote.most - 1} of "
                "its best tokens when this process started; set beam.top_b there"
            )

    def _log_rest(self, row: int) -> float:
        """Return the log of what is left of a row's probability without the end tokens.

        Where rounding leaves nothing, it is what is told of other tokens.
        """
        ends = self._remote.end_ids
        self.learn([Wanted(row, names=ends)])
        logprobs = self._now(row).logprobs
        gone = math.fsum(math.exp(logprobs[i]) for i in ends)
        others = [value for i, value in logprobs.items() if i not in ends]
        if gone >= 1 and not others:
            (best,) = self._ask([self._query(row, forbidden=ends)])
            others = [best.logprobs[best.chosen]]
        told = torch.tensor(others, dtype=torch.float64).logsumexp(0).item()
        rest = max(math.log1p(-gone) if gone < 1 else -math.inf, told)
        if rest == -math.inf:
            raise self._remote.client.fault("no probability to any token but its ends")
        return rest

    def _said(self, row: int, path: Path = ()) -> Numbers | None:
        return self._rows.known(self._indices[row]).get(path)

    def _now(self, row: int) -> Numbers:
        """Return what is known of a row's next token, asking where nothing is."""
        if (known := self._said(row)) is None:
            self.learn([Wanted(row)])
            known = self._rows.known(self._indices[row])[()]
        return known

    def _keep(self, row: int, numbers: Numbers, path: Path = ()) -> None:
        """Add to what is known after a row and ``path``, and after what was chosen then."""
        known = self._rows.known(self._indices[row])
        more: Numbers | None = numbers
        while more is not None:
            known.setdefault(path, more).logprobs.update(more.logprobs)
            path, more = (*path, more.chosen), more.then

    def _query(
        self,
        row: int,
        path: Path = (),
        *,
        best: int = 0,
        names: Sequence[int] = (),
        forbidden: Sequence[int] = (),
        only: int | None = None,
        draw: Draw = GREEDY,
        ahead: int = 0,
    ) -> Query:
        at = self._indices[row]
        ids, salt = (*self._rows.ids[at], *path), self._rows.salt(at)
        return Query(ids, best, tuple(names), tuple(forbidden), only, draw, ahead, salt)

    def _ask(self, queries: Sequence[Query]) -> list[Numbers]:
        if not queries:
            return []
        with self._charged():
            return self._remote.ask(queries)

    def _stream(self, row: int, beam: Beam) -> TokenStream:
        return self._rows.complete(self._indices[row], *self._completion(beam, 0))

    def _completion(self, beam: Beam, further: int) -> tuple[int, Draw, int]:
        """Return how a beam is completed from ``further`` tokens on: length, draws, pieces."""
        request, place = beam.request, len(beam.token_ids) + further
        draw = _draw(request.config, beam.generator, place)
        config = request.config
        interval = _STOP_INTERVAL if config.stop and config.stop_ends else 0
        return request.max_new_tokens - place, draw, interval


class RemoteOpening(RemoteTokens):
    """The first step of an anchor that has a token for exactly its opening; see ``AnchorSteer``.

    ``a`` stands for token ``a`` without the opening token before it, ``width + a`` for both.
    """

    def __init__(self, tokens: RemoteTokens, opening_id: int) -> None:
        super().__init__(tokens._rows, tokens._indices, tokens._charged, ends=tokens._ends)
        self._opening_id = opening_id
        self._found: list[list[tuple[int, float]]] = []
        self._count = 0

    def top(self, count: int, ahead: Sequence[int] = ()) -> list[list[tuple[int, float]]]:
        """Return each row's ``count`` best columns with their log-probabilities, in one trip."""
        if count > self._count:
            self._found, self._count = self._ask_top(count), count
        return [pairs[:count] for pairs in self._found]

    def _ask_top(self, count: int) -> list[list[tuple[int, float]]]:
        self._check_count(count + 1)
        opening_id, rows = self._opening_id, range(len(self._indices))
        first = [self._query(n, best=count + 1, only=opening_id) for n in rows]
        then = [self._query(n, (opening_id,), best=count) for n in rows]
        said = self._ask([*first, *then])
        found = []
        for n in rows:
            before, after = said[n], said[len(rows) + n]
            # The opening token was not its choice.
            self._keep(n, Numbers(before.best(1)[0][0], before.logprobs))
            weight = before.logprobs[opening_id]
            pairs = [(i, v) for i, v in before.logprobs.items() if i != opening_id]
            pairs += [(self.role.width + i, weight + v) for i, v in after.logprobs.items()]
            found.append(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:count])
        return found


def _draw(config: BeamConfig, generator: torch.Generator, place: int) -> Draw:
    if config.temperature == 0:
        return GREEDY
    seed = (generator.initial_seed() + (place + 1) * _STRIDE) % 2**63
    return Draw(config.temperature, config.top_k, config.top_p, seed)
