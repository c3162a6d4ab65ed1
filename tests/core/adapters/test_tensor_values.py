"""Tensor values: taken from the buffer as they are, finite now and when served, relative to our base."""

from __future__ import annotations

import pytest
import torch

from loramux.adapters.refusal import Refusal
from loramux.adapters.safetensors_header import TensorEntry
from loramux.adapters.tensor_values import refuse_changed_base, refuse_non_finite, tensor_at


def test_tensors_are_views_of_the_buffer() -> None:
    data = bytearray(b"\0\0" + torch.arange(6, dtype=torch.float16).numpy().tobytes())
    tensor = tensor_at(data, TensorEntry("a", torch.float16, (2, 3), 2, 14))
    assert torch.equal(tensor, torch.arange(6, dtype=torch.float16).reshape(2, 3))
    data[2:4] = torch.tensor([7], dtype=torch.float16).numpy().tobytes()
    assert tensor[0, 0] == 7


def test_a_tensor_at_an_odd_address_is_copied_to_a_whole_one() -> None:
    data = bytearray(b"\0\0" + torch.arange(4, dtype=torch.float32).numpy().tobytes())
    tensor = tensor_at(data, TensorEntry("a", torch.float32, (4,), 2, 18))
    assert torch.equal(tensor, torch.arange(4, dtype=torch.float32))
    assert tensor.data_ptr() % 4 == 0


def laid_out(*tensors: torch.Tensor) -> tuple[bytearray, list[TensorEntry]]:
    """Return the data section of a file with these tensors, named a, b, …, and its entries."""
    data, entries = bytearray(), []
    for name, tensor in zip("abcdef", tensors, strict=False):
        start = len(data)
        data += tensor.view(torch.uint8).numpy().tobytes()
        entries.append(TensorEntry(name, tensor.dtype, tuple(tensor.shape), start, len(data)))
    return data, entries


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("other_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(dtype: torch.dtype, other_dtype: torch.dtype, value: float) -> None:
    tensor = torch.zeros(3, 6, dtype=dtype)
    data, entries = laid_out(torch.ones(4, 2, dtype=other_dtype), tensor)
    refuse_non_finite(data, entries, torch.float32)
    tensor[1, 2] = value
    data, entries = laid_out(torch.ones(4, 2, dtype=other_dtype), tensor)
    with pytest.raises(Refusal, match=r"^tensor 'b' has values that are not finite\.$"):
        refuse_non_finite(data, entries, torch.float32)


@pytest.mark.parametrize("value", [1e6, -1e6, 65520.0])
def test_values_that_the_serving_dtype_cannot_hold_are_refused(value: float) -> None:
    data, entries = laid_out(torch.tensor([0.0, value]))
    refuse_non_finite(data, entries, torch.bfloat16)
    with pytest.raises(Refusal, match=r"^tensor 'a' has values that are not finite in float16, which this server uses"):
        refuse_non_finite(data, entries, torch.float16)


@pytest.mark.parametrize("file_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_is_no_change_of_the_base(file_dtype: torch.dtype, base_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    original = torch.randn(5000, 4) * 0.02
    refuse_changed_base("lm_head", original.to(file_dtype), original.to(base_dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_changed_value_is_a_change_of_the_base(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    saved = (torch.randn(5000, 4) * 0.02).to(dtype)
    current = saved.clone()
    current[4999, 3] += 0.01
    with pytest.raises(Refusal, match=r"^module lm_head: its saved base weight differs from this base model\.$"):
        refuse_changed_base("lm_head", saved, current)


def test_another_shape_is_a_change_of_the_base() -> None:
    with pytest.raises(Refusal):
        refuse_changed_base("lm_head", torch.zeros(3, 4), torch.zeros(4, 4))
