"""Layers with spare columns: what ``DynamicLayer`` holds, bit for bit, and no copy at a step."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_role
from transformers.cache_utils import DynamicLayer

from alignbeam.models.growing import SPARE, GrowingLayer, growing_cache

STEP = st.one_of(
    st.tuples(st.just("grow"), st.integers(1, 20)),
    st.tuples(st.just("grow"), st.just(1)),
    st.tuples(st.just("crop"), st.integers(1, 3)),
    st.tuples(st.just("reorder"), st.integers(0, 9)),
    st.tuples(st.just("copy"), st.just(0)),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 3), STEP), min_size=1, max_size=40))
def test_layers_and_their_copies_hold_what_layers_without_spare_columns_hold(steps):
    noise = torch.Generator().manual_seed(0)
    pairs = [(DynamicLayer(), GrowingLayer())]
    for which, (what, size) in steps:
        pair = pairs[which % len(pairs)]
        held = pair[0].get_seq_length()
        if what == "grow":
            rows = pair[0].keys.shape[0] if held else 2
            new = torch.randn(2, rows, 2, size, 4, generator=noise)
            given_back = [layer.update(new[0], new[1, ..., :3]) for layer in pair]
            assert all(map(torch.equal, *given_back))
        elif what == "crop" and held > size:
            for layer in pair:
                layer.crop(-size)
        elif what == "reorder" and held:
            index = torch.randint(pair[0].keys.shape[0], (1 + size % 3,), generator=noise)
            for layer in pair:
                layer.reorder_cache(index)
        elif what == "copy":
            pairs.append(tuple(map(copy.copy, pair)))
        for plain, growing in pairs:  # a step of one changes no other
            assert plain.get_seq_length() == growing.get_seq_length()
            if plain.get_seq_length():
                assert torch.equal(plain.keys, growing.keys)
                assert torch.equal(plain.values, growing.values)


def test_most_steps_copy_nothing():
    layer, places = GrowingLayer(), set()
    token = torch.zeros(1, 1, 1, 8)
    for _ in range(1000):
        layer.update(token, token)
        places.add((layer.keys.data_ptr(), layer.values.data_ptr()))
    assert len(places) < 40
    assert layer._room[0].shape[-2] <= 1000 * (1 + SPARE) + 16


@pytest.mark.parametrize(
    "replace",
    [
        lambda layer: layer.crop(-1),
        lambda layer: layer.reorder_cache(torch.tensor([0])),
        lambda layer: setattr(layer, "keys", torch.zeros(1, 1, 9, 8)),
    ],
)
def test_whoever_replaces_the_keys_frees_the_spare_columns(replace):
    layer, token = GrowingLayer(), torch.zeros(1, 1, 9, 8)
    layer.update(token, token)
    assert layer._room is not None
    replace(layer)
    assert layer._room is None


def test_every_layer_of_full_attention_grows():
    role = random_role("target", "llama", seed=1)
    cache = growing_cache(role.model.config)
    assert {type(layer) for layer in cache.layers} == {GrowingLayer}
    assert len(cache.layers) == role.model.config.num_hidden_layers
