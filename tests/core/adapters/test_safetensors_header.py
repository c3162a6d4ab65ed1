"""The header of a safetensors file: every lie about where tensors are is refused before they are read."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from loramux.adapters.refusal import Refusal
from loramux.adapters.safetensors_header import MAX_HEADER_NBYTES, TensorEntry, header_nbytes, parse_header


def entry(dtype: Any = "F32", shape: Any = (2, 2), start: Any = 0, end: Any = 16) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def refusal(header: dict[str, Any] | bytes, *, data_nbytes: int = 16, max_tensors: int = 10) -> str:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    with pytest.raises(Refusal) as caught:
        parse_header(content, data_nbytes=data_nbytes, max_tensors=max_tensors)
    assert caught.value.code == "adapter_invalid"
    return caught.value.reason


def test_tensors_come_in_the_order_of_the_file() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("BF16", [3], 16, 22),
        "a": entry(),
        "c": entry("F16", [], 22, 24),
    }
    assert parse_header(json.dumps(header).encode() + b"   ", data_nbytes=24, max_tensors=3) == (
        TensorEntry("a", torch.float32, (2, 2), 0, 16),
        TensorEntry("b", torch.bfloat16, (3,), 16, 22),
        TensorEntry("c", torch.float16, (), 22, 24),
    )


@pytest.mark.parametrize("nbytes", [0, 1, MAX_HEADER_NBYTES + 1, 2**63])
def test_a_header_of_absurd_length_is_not_read(nbytes: int) -> None:
    with pytest.raises(Refusal, match=f"the safetensors header has {nbytes} bytes; accepted are 2 to 8388608."):
        header_nbytes(nbytes.to_bytes(8, "little"), file_nbytes=2**62)


def test_a_header_longer_than_its_file_is_refused() -> None:
    with pytest.raises(Refusal, match="the weights file is truncated: a header of 100 bytes in a file of 107"):
        header_nbytes((100).to_bytes(8, "little"), file_nbytes=107)


def test_a_file_without_a_whole_length_is_refused() -> None:
    with pytest.raises(Refusal, match="too short to be a safetensors file"):
        header_nbytes(b"\x02\x00", file_nbytes=2)


def test_duplicate_names_are_refused() -> None:
    item = json.dumps(entry())
    assert refusal(f'{{"a": {item}, "a": {item}}}'.encode()) == (
        "the safetensors header is not valid: duplicate key 'a'."
    )


@pytest.mark.parametrize("header", [b' {"a": 1}', b"[]", b"\x00\x00"])
def test_a_header_starts_with_a_brace(header: bytes) -> None:
    assert refusal(header) == "the safetensors header is not valid: it does not start with '{'."


def test_metadata_must_be_an_object() -> None:
    assert refusal({"__metadata__": 1}) == "the safetensors header is not valid: __metadata__ is not an object."


def test_more_tensors_than_the_base_allows_are_refused() -> None:
    header = {str(place): entry(start=16 * place, end=16 * place + 16) for place in range(11)}
    assert refusal(header) == "the weights file has 11 tensors; this base model allows at most 10."


@pytest.mark.parametrize(("name", "is_shown"), [("é", "'é'"), ("", "''"), ("x" * 513, "'xxx")])
def test_names_are_short_ascii(name: str, is_shown: str) -> None:
    reason = refusal({name: entry()})
    assert reason.startswith(f"tensor name {is_shown}")
    assert reason.endswith("is not 1 to 512 ASCII characters.")


@pytest.mark.parametrize("dtype", ["F64", "F8_E4M3", "I32", "U8", "BOOL", "f32", None, ["F32"]])
def test_only_float_dtypes_that_serve_are_accepted(dtype: Any) -> None:
    assert refusal({"a": entry(dtype)}) == f"tensor 'a': dtype {dtype!r} is not supported; only F32, F16 and BF16 are."


@pytest.mark.parametrize("shape", [[0], [2, 0, 2]])
def test_zero_size_tensors_are_refused(shape: list[int]) -> None:
    assert refusal({"a": entry(shape=shape, end=0)}) == "tensor 'a' has zero size."


@pytest.mark.parametrize("shape", [[2.0, 2], [True, 4], [-2, -2], ["4"], [2**48, 1], 4, None])
def test_shapes_are_counts(shape: Any) -> None:
    assert refusal({"a": entry(shape=shape)}).startswith("tensor 'a': shape is ")


@pytest.mark.parametrize(
    "item", [{"dtype": "F32", "shape": [4]}, entry() | {"more": 1}, 5, None, ["F32", [4], [0, 16]]]
)
def test_entries_have_three_fields(item: Any) -> None:
    assert refusal({"a": item}) == "tensor 'a': its header entry is not dtype, shape and data_offsets."


@pytest.mark.parametrize("item", [entry(shape=[1] * 9), entry() | {"data_offsets": [0, 8, 16]}])
def test_dimensions_and_offsets_are_bounded(item: Any) -> None:
    assert refusal({"a": item}) == "tensor 'a': shape or data_offsets has the wrong number of values."


@pytest.mark.parametrize("item", [entry(end=12), entry(shape=[2**47, 2**47]), entry(start=16, end=0)])
def test_shape_and_offsets_agree(item: Any) -> None:
    assert "bytes, data_offsets says otherwise." in refusal({"a": item})


@pytest.mark.parametrize(("start", "end"), [(4, 20), (8, 24)])
def test_gaps_and_overlaps_are_refused(start: int, end: int) -> None:
    header = {"a": entry(shape=[3], end=12), "b": entry(start=start, end=end)}
    assert refusal(header, data_nbytes=end) == "the weights file has a gap or overlap before tensor 'b'."


@pytest.mark.parametrize("data_nbytes", [15, 17])
def test_tensors_cover_the_file_exactly(data_nbytes: int) -> None:
    assert refusal({"a": entry()}, data_nbytes=data_nbytes) == (
        f"the weights file is truncated or padded: its tensors cover 16 of {data_nbytes} bytes."
    )
