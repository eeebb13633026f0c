"""The decoder beside a backbone, by itself: its size, its controls, and what it keeps in another's cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from autopeft.methods.additive.others.ipa import DecoderShape, SmallDecoder
from transformers import DynamicCache

from autopeft.errors import CompositionError
from autopeft.method import Context

SHAPE = DecoderShape(words=30, layers=2, width=16, heads=4, kv_heads=2, ffn=24, rope_theta=500.0)
IDS = torch.tensor([[4, 9, 2, 7, 7], [3, 3, 8, 1, 20]])


def decoder() -> Any:
    torch.manual_seed(0)
    return SmallDecoder(SHAPE, 3, "ipa").eval()


def test_its_size_is_that_of_the_formula() -> None:
    made = decoder()
    assert sum(p.numel() for p in made.decoder.parameters()) == SHAPE.size
    assert made.decoder.config.rope_parameters["rope_theta"] == 500.0


@torch.no_grad()
def test_each_token_is_read_behind_the_control() -> None:
    made = decoder()
    first = made(Context(tokens=IDS))
    other = made(Context(tokens=IDS), torch.tensor([0, 2]))
    assert first.shape == (2, 5, 16)
    assert torch.equal(first[0], other[0])
    assert not torch.allclose(first[1], other[1])
    later = IDS.clone()
    later[:, 3] = 11
    torch.testing.assert_close(made(Context(tokens=later))[:, :3], first[:, :3])


@torch.no_grad()
def test_padding_is_not_read() -> None:
    made = decoder()
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), IDS], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :2] = 0
    found = made(Context(tokens=padded, text_mask=mask))
    torch.testing.assert_close(found[:, 2:], made(Context(tokens=IDS)))


@torch.no_grad()
def test_its_past_is_kept_in_the_other_cache_and_goes_with_it() -> None:
    made, cache = decoder(), DynamicCache()
    for layer in range(3):  # the backbone's own
        cache.update(torch.randn(2, 1, 4, 8), torch.randn(2, 1, 4, 8), layer)
    made(Context(tokens=IDS[:, :4], cache=cache))
    assert len(cache.layers) == 5
    assert cache.get_seq_length() == 4
    assert cache.layers[3].get_seq_length() == 5
    cache.reorder_cache(torch.tensor([1, 0]))
    mask = torch.ones(2, 5, dtype=torch.long)
    swapped = IDS.flip(0)
    found = made(Context(tokens=swapped[:, 4:], text_mask=mask, cache=cache, cached=True))
    torch.testing.assert_close(found, made(Context(tokens=swapped))[:, 4:])
    assert len(cache.layers) == 5


def test_a_past_of_another_length_is_refused() -> None:
    made, cache = decoder(), DynamicCache()
    made(Context(tokens=IDS, cache=cache))
    longer = torch.ones(2, 9, dtype=torch.long)
    with pytest.raises(CompositionError, match="use_cache=False"):
        made(Context(tokens=IDS[:, :1], text_mask=longer, cache=cache, cached=True))
    with pytest.raises(CompositionError, match="use_cache=False"):
        made(Context(tokens=IDS[:, :1], cached=True))


def test_an_emptied_cache_begins_anew() -> None:
    made, cache = decoder(), DynamicCache()
    made(Context(tokens=IDS, cache=cache))
    made(Context(tokens=IDS[:, :2], cache=cache))
    assert [layer.get_seq_length() for layer in cache.layers] == [3, 3]


def test_two_of_them_keep_apart() -> None:
    one, two, cache = decoder(), decoder(), DynamicCache()
    for made in (one, two):
        made(Context(tokens=IDS, cache=cache))
    assert one.key != two.key
    assert len(cache.layers) == 4
