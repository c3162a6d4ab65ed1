"""What is written to a place of the KV memory is read from it, layer by layer, and everything in it stays finite."""

from __future__ import annotations

import pytest
import torch

from loramux.model.kv_cache import KVCache, LayerShape, bytes_per_token

LAYERS = (LayerShape(num_kv_heads=2, key_dim=3, value_dim=5), LayerShape(num_kv_heads=1, key_dim=4, value_dim=4))


def make_cache(dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(LAYERS, num_blocks=4, block_size=2, dtype=dtype, device=torch.device("cpu"))


def tokens(count: int, layer: LayerShape) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, layer.num_kv_heads, layer.key_dim), torch.randn(
        count, layer.num_kv_heads, layer.value_dim
    )


@pytest.mark.parametrize("layer", [0, 1])
def test_blocks_are_read_in_the_order_of_the_block_table(layer: int) -> None:
    cache = make_cache()
    key, value = tokens(4, LAYERS[layer])
    cache.write(layer, key, value, torch.tensor([6, 7, 2, 3]))  # blocks 3 and 1

    read_key, read_value = cache.read(layer, torch.tensor([3, 1]))

    assert torch.equal(read_key, key)
    assert torch.equal(read_value, value)


def test_several_sequences_are_read_at_once() -> None:
    cache = make_cache()
    key, value = tokens(8, LAYERS[0])
    cache.write(0, key, value, torch.arange(8))

    read_key, _read_value = cache.read(0, torch.tensor([[0, 1], [3, 2]]))

    assert read_key.shape == (2, 4, 2, 3)
    assert torch.equal(read_key[1], key[[6, 7, 4, 5]])


def test_a_write_changes_its_own_layer_and_places_only() -> None:
    cache = make_cache()
    key, value = tokens(1, LAYERS[0])
    cache.write(0, key, value, torch.tensor([5]))

    assert not cache.keys[1].any()
    assert cache.keys[0].flatten(0, 1).flatten(1).any(dim=1).nonzero().tolist() == [[5]]


def test_memory_never_written_is_zero() -> None:
    """Masked garbage must be finite: zero times NaN is NaN."""
    cache = make_cache(torch.bfloat16)

    assert not any(tensor.any() for tensor in (*cache.keys, *cache.values))
    assert cache.keys[0].dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("is_key", [True, False])
def test_places_that_are_not_finite_are_found_and_cleared_in_every_layer(bad: float, is_key: bool) -> None:
    cache = make_cache()
    for index, layer in enumerate(LAYERS):
        key, value = tokens(3, layer)
        (key if is_key else value)[1] = bad
        cache.write(index, key, value, torch.tensor([0, 4, 6]))

    are_usable = cache.are_usable(torch.tensor([0, 4, 6]))
    cache.clear(torch.tensor([4]))

    assert are_usable.tolist() == [True, False, True]
    assert all(tensor.isfinite().all() for tensor in (*cache.keys, *cache.values))
    assert cache.keys[0].flatten(0, 1)[[0, 6]].all()


def test_the_bytes_of_a_token_are_those_of_all_layers() -> None:
    assert bytes_per_token(LAYERS, torch.bfloat16) == 2 * (2 * (3 + 5) + 1 * (4 + 4))
