"""A KV cache whose layers have spare columns: a step writes its token, and copies none."""

from __future__ import annotations

from typing import Any, Final, Self

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

#: Spare columns, as a share of those that are held; ``_LEAST_SPARE`` where that is fewer.
SPARE: Final = 1 / 8
_LEAST_SPARE: Final = 16


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """``DynamicLayer`` without its copy of all keys and values at every step.

    Only columns that nobody was given are written, so whatever was given stays as it is. A copy of
    the layer (``copy.copy``), and one whose keys somebody replaced (crop, reorder), has no spare
    columns, and makes some when it next grows.
    """

    values: torch.Tensor
    #: Keys and values, spare columns included.
    _room: tuple[torch.Tensor, torch.Tensor] | None

    @property
    def keys(self) -> torch.Tensor:
        """Keys [R, heads, columns, size]. Setting them lets the spare columns go."""
        return self._keys

    @keys.setter
    def keys(self, keys: torch.Tensor) -> None:
        self._keys, self._room = keys, None

    def __copy__(self) -> Self:
        """Return a layer with the same keys and values, whose growth changes none of them."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied._room = None
        return copied

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns [R, heads, new, size]; see ``DynamicLayer.update``."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        columns = held + key_states.shape[-2]
        room = self._room
        if room is None or columns > room[0].shape[-2]:
            room = (
                _with_spare(self.keys, key_states, held, columns),
                _with_spare(self.values, value_states, held, columns),
            )
        room[0][..., held:columns, :] = key_states
        room[1][..., held:columns, :] = value_states
        self.keys, self.values = room[0][..., :columns, :], room[1][..., :columns, :]
        self._room = room
        return self.keys, self.values


def _with_spare(old: torch.Tensor, new: torch.Tensor, held: int, columns: int) -> torch.Tensor:
    """Return room for more than ``columns`` columns; what is held is copied into it."""
    spare = max(_LEAST_SPARE, int(columns * SPARE))
    room = new.new_empty((*new.shape[:-2], columns + spare, new.shape[-1]))
    if held:
        room[..., :held, :] = old
    return room


def growing_cache(config: Any) -> DynamicCache:
    """Return an empty cache for a model of this configuration."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(la) is DynamicLayer else la for la in cache.layers]
    return cache
