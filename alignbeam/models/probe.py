"""Whether a model's rows may share a forward and a cache: found out by running it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import torch

from alignbeam.models.rows import Rows

if TYPE_CHECKING:
    from alignbeam.models.role import Role

_log = logging.getLogger(__name__)

#: More positions than any model has.
NO_LIMIT: Final = 1 << 30


def holds_cached_rows(role: Role, *, gaps: bool) -> bool:
    """Compare padded, cached (and gapped) runs of a few tokens with plain forwards."""
    spread = max(1, role.width // 11)
    tokens = [(3 + n * spread) % role.width for n in range(9)]
    one = [tokens[1:2], tokens[2:3], tokens[3:4]]
    two = [tokens[2:4], tokens[4:6], tokens[6:8]]
    try:
        rows = Rows(Probe(role, gaps=gaps), [tokens[:3], tokens[3:8]])
        rows.select([0, 0, 1])
        rows.extend(one)
        if gaps:
            rows.extend([tokens[4:6], tokens[6:7], tokens[8:9]], [1, 3, 0])
        # Looked at after each, for a block may prefill again and hide what one token broke.
        for new in (one, two):
            rows.extend(new)
            if not _holds_plain_logits(role, rows):
                return False
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        _log.info("%s: cached rows fail (%s)", role.name, error)
        return False
    return True


def _holds_plain_logits(role: Role, rows: Rows) -> bool:
    got = rows.logits.double().log_softmax(-1)
    want = torch.cat([role.forward_alone(ids) for ids in rows.ids]).double().log_softmax(-1)
    # Half precision rounds differently at every batch shape; a wrong position or mask moves
    # log-probabilities by about their own spread.
    room = 1e-3 if role.dtype == torch.float32 else 0.25
    return bool((got - want).abs().max() <= room * max(1.0, float(want.std())))


class Probe:
    """A role as ``Rows`` sees it, with the question under test already answered yes."""

    rows_alone = False
    cached_up_to = NO_LIMIT

    def __init__(self, role: Role, *, gaps: bool) -> None:
        self.gaps_are_exact = gaps
        self.device, self.pad_id = role.device, role.pad_id
        self.new_cache, self.forward = role.new_cache, role.forward
        self.forward_alone = role.forward_alone
