"""What a model on an engine says comes next: numbers of the tokens that are asked for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from alignbeam.config import BeamConfig
from alignbeam.decoding.beam import Beam
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.engines.rows import RemoteRows
from alignbeam.engines.vllm import GREEDY, Draw, Numbers, Query
from alignbeam.errors import ConfigError
from alignbeam.result import Wish

if TYPE_CHECKING:
    from alignbeam.engines.role import TokenStream

#: Tokens per streamed piece where stop strings may end the answer; else the role's own number.
_STOP_INTERVAL = 4
#: Keeps the draws of one beam at different places apart.
_STRIDE = 0x9E3779B97F4A7C15


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
        known: dict[int, Numbers] | None = None,
    ) -> None:
        self.role, self._rows, self._charged = rows.role, rows, charged
        self._remote = rows.role
        self._indices, self._ends = list(indices), ends
        # By row of ``rows``; shared with whatever is made of this.
        self._known: dict[int, Numbers] = {} if known is None else known

    @property
    def logits(self) -> torch.Tensor:  # type: ignore[override]
        """Nothing that an engine gives; see ``RemoteRows.logits``."""
        return self._rows.logits

    def rows(self, indices: Sequence[int]) -> RemoteTokens:
        """Return some of the rows."""
        kept = [self._indices[i] for i in indices]
        return RemoteTokens(self._rows, kept, self._charged, ends=self._ends, known=self._known)

    def without_ends(self) -> RemoteTokens:
        """Return the same without the role's end tokens."""
        return RemoteTokens(self._rows, self._indices, self._charged, ends=False, known=self._known)

    @property
    def finite(self) -> list[bool]:
        """True: an engine that gives no numbers raises ``EngineFault``."""
        return [True] * len(self._indices)

    @property
    def best(self) -> list[int]:
        """The most probable token of each row."""
        self._know(self._indices)
        return [self._known[i].chosen for i in self._indices]

    def best_token(self, row: int) -> int:
        """Return the most probable token of a row."""
        self._know([self._indices[row]])
        return self._known[self._indices[row]].chosen

    def best_of(self, row: int, count: int) -> list[int]:
        """Return the ``count`` most probable tokens of a row."""
        return [token_id for token_id, _ in self.best_pairs(row, count)]

    def best_pairs(self, row: int, count: int) -> list[tuple[int, float]]:
        """Return the ``count`` most probable tokens of a row and their log-probabilities."""
        found: list[tuple[int, float]] = []
        forbidden = () if self._ends else self._remote.end_ids
        rest = 0.0 if self._ends else self._log_rest(row)
        count = min(count, self._remote.width - len(forbidden))
        known = self._known.get(self._indices[row])
        if known is not None and count > 0 and known.chosen not in forbidden:
            found.append((known.chosen, known.logprobs[known.chosen] - rest))
        while len(found) < count:
            (said,) = self._ask([self._query(row, forbidden=(*forbidden, *(i for i, _ in found)))])
            found.append((said.chosen, said.logprobs[said.chosen] - rest))
        return found

    def logprob(self, row: int, token_id: int) -> float:
        """Log-probability of a token, nats."""
        return self.rows([row]).named([[token_id]])[0][token_id]

    def top(self, count: int) -> list[list[tuple[int, float]]]:
        """Return each row's ``count`` best ids with their log-probabilities, best first."""
        self._check_count(count)
        said = self._ask([self._query(n, best=count) for n in range(len(self._indices))])
        self._known.update(zip(self._indices, said, strict=True))
        return [numbers.best(count) for numbers in said]

    def named(self, names: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Return the log-probabilities of each row's own ``names``."""
        ends = () if self._ends else self._remote.end_ids
        wanted = [dict.fromkeys((*ids, *ends)) for ids in names]
        asked = [
            n
            for n, ids in enumerate(wanted)
            if (known := self._known.get(self._indices[n])) is None or ids.keys() - known.logprobs
        ]
        said = self._ask([self._query(n, names=tuple(wanted[n])) for n in asked])
        for n, numbers in zip(asked, said, strict=True):
            known = self._known.setdefault(self._indices[n], numbers)
            known.logprobs.update(numbers.logprobs)
        found = []
        for n, ids in enumerate(names):
            numbers = self._known[self._indices[n]]
            logprobs = {i: numbers.logprobs[i] for i in ids}
            if not self._ends:
                rest = self._log_rest(n)
                logprobs = {
                    i: -math.inf if i in ends else value - rest for i, value in logprobs.items()
                }
            found.append(logprobs)
        return found

    def prefill(self) -> Callable[[], None]:
        """Have the engine read the rows while another is waited for; see ``NextTokens``."""
        names = () if self._ends else self._remote.end_ids
        pending = self._remote.start(
            [self._query(n, names=names) for n in range(len(self._indices))]
        )

        def wait() -> None:
            with self._charged():
                self._known.update(zip(self._indices, pending(), strict=True))

        return wait

    def begin(self, beams: Sequence[Beam]) -> None:
        """Begin the completion of every beam; all of them are on their way before one is read."""
        for row, beam in enumerate(beams):
            if beam.live:
                self._stream(row, beam)

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
        known = self._known.get(self._indices[row])
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
        """Return the log of what is left of a row's probability without the end tokens."""
        known = self._known.get(self._indices[row])
        if known is None or any(i not in known.logprobs for i in self._remote.end_ids):
            (said,) = self._ask([self._query(row, names=self._remote.end_ids)])
            known = self._known.setdefault(self._indices[row], said)
            known.logprobs.update(said.logprobs)
        gone = math.fsum(math.exp(known.logprobs[i]) for i in self._remote.end_ids)
        return math.log1p(-gone) if gone < 1 else -math.inf

    def _know(self, indices: Sequence[int]) -> None:
        missing = [i for i in indices if i not in self._known]
        said = self._ask([Query(tuple(self._rows.ids[i])) for i in missing])
        self._known.update(zip(missing, said, strict=True))

    def _query(
        self,
        row: int,
        *,
        best: int = 0,
        names: Sequence[int] = (),
        forbidden: Sequence[int] = (),
        only: int | None = None,
        draw: Draw = GREEDY,
    ) -> Query:
        ids = tuple(self._rows.ids[self._indices[row]])
        return Query(ids, best, tuple(names), tuple(forbidden), only, draw)

    def _ask(self, queries: Sequence[Query]) -> list[Numbers]:
        if not queries:
            return []
        with self._charged():
            return self._remote.ask(queries)

    def _stream(self, row: int, beam: Beam) -> TokenStream:
        config = beam.request.config
        return self._rows.complete(
            self._indices[row],
            beam.request.max_new_tokens - len(beam.token_ids),
            _draw(config, beam.generator, len(beam.token_ids)),
            _STOP_INTERVAL if config.stop and config.stop_ends else 0,
        )


class RemoteOpening(RemoteTokens):
    """The first step of an anchor that has a token for exactly its opening; see ``AnchorSteer``.

    ``a`` stands for token ``a`` without the opening token before it, ``width + a`` for both.
    """

    def __init__(self, tokens: RemoteTokens, opening_id: int) -> None:
        super().__init__(
            tokens._rows, tokens._indices, tokens._charged, ends=tokens._ends, known=tokens._known
        )
        self._opening_id = opening_id

    def top(self, count: int) -> list[list[tuple[int, float]]]:
        """Return each row's ``count`` best columns with their log-probabilities, in one trip."""
        self._check_count(count + 1)
        opening_id, rows = self._opening_id, range(len(self._indices))
        first = [self._query(n, best=count + 1, only=opening_id) for n in rows]
        then = [Query((*self._rows.ids[i], opening_id), best=count) for i in self._indices]
        said = self._ask([*first, *then])
        found = []
        for n in rows:
            before, after = said[n], said[len(rows) + n]
            self._known[self._indices[n]] = before
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
