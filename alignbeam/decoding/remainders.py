"""What the anchor's token goes on to say after the target's token that began it.

Under ``fallback="prefix"`` an anchor token goes to the longest target token that its bytes begin
with. Once the target has said that token, what is left of the anchor's is known: it is mixed into
the steps that follow, beside what the anchor says where its token is over. algorithm.md, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alignbeam.vocab.bridge import Bridge
from alignbeam.vocab.pieces import OVER


@dataclass(frozen=True, slots=True, eq=False)
class Remainders:
    """A distribution over where the anchor stands: inside which of its tokens, or after one.

    Attributes
    ----------
    token_ids : Tensor int64 [n]
        Anchor tokens that the target has begun to spell.
    places : Tensor int64 [n]
        Where in ``Bridge.pieces`` the rest of each begins.
    weights : Tensor float64 [n]
        Their probabilities.
    free : float
        Probability that the anchor's token is over; it is asked what follows. The rest of 1.
    """

    token_ids: torch.Tensor
    places: torch.Tensor
    weights: torch.Tensor
    free: float


class Followed:
    """Follows the anchor's tokens through the target tokens that spell them.

    Parameters
    ----------
    bridge : Bridge
        Under ``fallback="prefix"``.
    after_opening : Tensor [Va] bool
        The anchor's tokens that may follow its opening token.
    """

    def __init__(self, bridge: Bridge, after_opening: torch.Tensor) -> None:
        self._pieces = bridge.pieces.long()
        self._target_width = bridge.target_width
        self._after_opening = after_opening
        self._from = {
            False: _Beginnings(self._pieces, bridge.starts.long()),
            True: _Beginnings(self._pieces, bridge.opening_starts.long()),
        }

    def after(
        self,
        token_id: int,
        said: torch.Tensor | None,
        before: Remainders | None,
        *,
        opening: bool = False,
    ) -> Remainders | None:
        """Return where the anchor stands once the target has said a token.

        Parameters
        ----------
        token_id : int
            The target's.
        said : Tensor [Va] or, in the opening, [2 Va]; or None
            The anchor's logits of this step; None where it was not asked.
        before : Remainders or None
            Where it stood; None after a token of its own.
        opening : bool
            Whether this was the first step.

        Returns
        -------
        Remainders or None
            None where none of its tokens goes on: it is asked anew, as after any text. So it is
            where it gave the target's token no probability.
        """
        beginnings = self._from[opening]
        if before is None and token_id not in beginnings.split:
            return None
        ids = places = torch.empty(0, dtype=torch.long)
        weights = torch.empty(0, dtype=torch.float64)
        if said is not None:
            ids, weights = self._weighed(beginnings.of(token_id), said)
            places = beginnings.starts[ids] + 1
        if before is not None:
            goes_on = self._pieces[before.places] == token_id
            ids = torch.cat([ids, before.token_ids[goes_on]])
            places = torch.cat([places, before.places[goes_on] + 1])
            weights = torch.cat([weights * before.free, before.weights[goes_on]])
        total = float(weights.sum())
        over = self._pieces[places] == OVER
        if not total > 0 or bool(over.all()):
            return None
        weights = weights / total
        return Remainders(ids[~over], places[~over], weights[~over], float(weights[over].sum()))

    def _weighed(self, ids: torch.Tensor, said: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return anchor tokens and their probabilities, float64; those after the opening too."""
        columns = ids
        if len(said) > len(self._after_opening):
            later = ids[self._after_opening[ids]]
            columns = torch.cat([ids, later + len(self._after_opening)])
            ids = torch.cat([ids, later])
        found = said[columns.to(said.device)].float() - said.float().logsumexp(-1)
        return ids, found.double().exp().cpu()

    def table(self, table: torch.Tensor) -> torch.Tensor:
        """Return the table of ``mixed``'s columns, int32, given the bridge's."""
        own = torch.arange(self._target_width, dtype=table.dtype)
        return torch.cat([table, own, torch.tensor([-1], dtype=table.dtype)])

    def mixed(
        self, logits: torch.Tensor, standing: Sequence[Remainders], heard: Sequence[bool]
    ) -> torch.Tensor:
        """Put remainders beside what the anchor says where its token is over.

        Parameters
        ----------
        logits : Tensor [R, Va]
            The anchor's, one row per entry of ``standing``.
        heard : sequence of bool
            Whether a row's numbers count: else the anchor could not be asked, and what it would
            say is lost.

        Returns
        -------
        Tensor float32 [R, Va + Vt + 1]
            Log-probabilities of anchor tokens, of remainders by their next target token, and of
            what is lost.
        """
        rows, width = logits.shape
        device, never = logits.device, float("-inf")
        out = torch.full((rows, width + self._target_width + 1), never, device=device)
        for row, (one, asked) in enumerate(zip(standing, heard, strict=True)):
            if asked:
                out[row, :width] = logits[row].float().log_softmax(-1) + math.log(one.free)
            nexts = self._pieces[one.places]
            spelled = nexts >= 0
            owed = torch.zeros(self._target_width + 1, dtype=torch.float64)
            owed.index_add_(0, nexts[spelled], one.weights[spelled])
            owed[-1] = one.weights[~spelled].sum() + (0.0 if asked else one.free)
            out[row, width:] = owed.log().float().to(device)
        return out


class _Beginnings:
    """Which anchor tokens begin with which target token.

    Attributes
    ----------
    starts : Tensor int64 [Va]
        Where the pieces of each anchor token begin.
    split : frozenset of int
        Target tokens that begin an anchor token without ending it.
    """

    def __init__(self, pieces: torch.Tensor, starts: torch.Tensor) -> None:
        first = pieces[starts]
        spelled = first >= 0
        goes_on = pieces[(starts + 1).clamp(max=len(pieces) - 1)] != OVER
        self.starts = starts
        self.split = frozenset(first[spelled & goes_on].tolist())
        self._first, self._order = first.sort(stable=True)

    def of(self, token_id: int) -> torch.Tensor:
        """Return the anchor tokens that go to a target token, ascending; int64."""
        ends = torch.searchsorted(self._first, torch.tensor([token_id, token_id + 1]))
        return self._order[int(ends[0]) : int(ends[1])]
