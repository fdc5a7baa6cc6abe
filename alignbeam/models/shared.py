"""Logits after many sequences that begin alike: a common beginning is computed once.

The sequences form a tree. Its inner nodes are beginnings that several of them share; each is fed
once, and its cached rows are forked for what follows. A sequence that others begin with ends in an
inner node, and costs nothing more. Each row holds the same tokens at the same positions as it would
by itself, so the logits are the same within rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from alignbeam.models.role import Role
    from alignbeam.models.rows import Rows

#: A shared beginning of fewer tokens is not worth a forward of its own.
LEAST_SHARED: Final = 32
#: The same on a CPU, where tokens cost more than forwards.
_LEAST_ON_CPU: Final = 8


@dataclass(slots=True)
class _Node:
    """Tokens ``begin .. end`` of ``sequence``, and what follows them."""

    sequence: int
    begin: int
    end: int
    children: list[_Node] = field(default_factory=list)


def shared_logits(role: Role, sequences: Sequence[Sequence[int]]) -> torch.Tensor | None:
    """Return logits [R, width] after each sequence; None where nothing is worth sharing.

    Parameters
    ----------
    role : Role
        One whose rows may have gaps (``gaps_are_exact``).
    sequences : sequence of sequences of int
        Each of one token or more; within ``cached_up_to``.
    """
    first = {tuple(ids): i for i, ids in reversed(list(enumerate(sequences)))}
    order = [first[ids] for ids in sorted(first)]
    least = _LEAST_ON_CPU if role.device.type == "cpu" else LEAST_SHARED
    roots = _tree(sequences, order, 0, least)
    if len(roots) == len(order) == len(sequences):
        return None
    found: dict[int, torch.Tensor] = {}
    fed: list[tuple[Rows, list[_Node]]] = []
    for alike in _alike([(0, node) for node in roots]):
        level = [node for _, node in alike]
        fed.append((role.rows([sequences[node.sequence][: node.end] for node in level]), level))
    while fed:
        rows, level = fed.pop()
        for n, node in enumerate(level):
            if node.end == len(sequences[node.sequence]):
                found[node.sequence] = rows.logits[n]
        groups = _alike([(n, child) for n, node in enumerate(level) for child in node.children])
        for alike in groups:
            grown = rows if alike is groups[-1] else rows.fork()
            grown.select([n for n, _ in alike])
            level = [node for _, node in alike]
            grown.extend([sequences[node.sequence][node.begin : node.end] for node in level])
            fed.append((grown, level))
    return torch.stack([found[first[tuple(ids)]] for ids in sequences])


def _alike(nodes: Sequence[tuple[int, _Node]]) -> list[list[tuple[int, _Node]]]:
    """Part nodes by length, so that a long one does not make padding of all the others."""
    groups: list[list[tuple[int, _Node]]] = []
    shortest = 0
    for parent, node in sorted(nodes, key=lambda pair: pair[1].end - pair[1].begin):
        length = node.end - node.begin
        if not groups or length > 2 * shortest + LEAST_SHARED:
            groups.append([])
            shortest = length
        groups[-1].append((parent, node))
    return groups


def _tree(
    sequences: Sequence[Sequence[int]], order: Sequence[int], begin: int, least: int
) -> list[_Node]:
    """Return the nodes that follow a common beginning of ``begin`` tokens.

    ``order`` holds distinct sequences in lexicographic order, so that those which begin alike are
    neighbours, and one that others begin with comes before them.
    """
    nodes: list[_Node] = []
    start = 0
    while start < len(order):
        stop = start + 1
        head = sequences[order[start]]
        same = len(head)
        while stop < len(order):
            common = _common(head[:same], sequences[order[stop]])
            if common - begin < least:
                break
            same, stop = common, stop + 1
        ended = int(same == len(head))
        children = _tree(sequences, order[start + ended : stop], same, least)
        nodes.append(_Node(order[start], begin, same, children))
        start = stop
    return nodes


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """Count the tokens that both begin with."""
    most = min(len(one), len(two))
    return next((n for n in range(most) if one[n] != two[n]), most)
