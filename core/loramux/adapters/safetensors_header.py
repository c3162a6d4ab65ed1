"""The header of a safetensors file: where each tensor lies, checked before a byte of the tensors is read.

The library accepts what would let an auditor and a loader disagree (duplicate keys, zero-size tensors) and headers of
100 MB; after `parse_header` the entries cover the data section exactly, in order, with no gap and no overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from loramux.adapters.refusal import Refusal, shown
from loramux.adapters.strict_json import JsonValue, parse_json_object

LENGTH_NBYTES = 8  # the file starts with the header's length, little endian
MAX_HEADER_NBYTES = 8 * 1024 * 1024
MAX_NAME_CHARACTERS = 512
MAX_DIMENSIONS = 8
_MAX_DEPTH = 4
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the file; `start` and `end` count from the first byte behind the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def header_nbytes(prefix: bytes, *, file_nbytes: int) -> int:
    """Return the length of the header from the first 8 bytes of a file of `file_nbytes`; raises Refusal."""
    if len(prefix) < LENGTH_NBYTES:
        raise Refusal("the weights file is truncated: it is too short to be a safetensors file.")
    nbytes = int.from_bytes(prefix, "little")
    if not 2 <= nbytes <= MAX_HEADER_NBYTES:
        raise Refusal(f"the safetensors header has {nbytes} bytes; accepted are 2 to {MAX_HEADER_NBYTES}.")
    if LENGTH_NBYTES + nbytes > file_nbytes:
        raise Refusal(f"the weights file is truncated: a header of {nbytes} bytes in a file of {file_nbytes}.")
    return nbytes


def parse_header(header: bytes, *, data_nbytes: int, max_tensors: int) -> tuple[TensorEntry, ...]:
    """Return the tensors in the order of the file; raises Refusal for any header that is not wholly sound."""
    if not header.startswith(b"{"):
        raise Refusal("the safetensors header is not valid: it does not start with '{'.")
    try:
        items = parse_json_object(header, max_depth=_MAX_DEPTH)
    except ValueError as exc:
        raise Refusal(f"the safetensors header is not valid: {exc}.") from exc
    if not isinstance(items.pop("__metadata__", {}), dict):
        raise Refusal("the safetensors header is not valid: __metadata__ is not an object.")
    if len(items) > max_tensors:
        raise Refusal(f"the weights file has {len(items)} tensors; this base model allows at most {max_tensors}.")
    entries = sorted((_entry(name, item) for name, item in items.items()), key=lambda entry: entry.start)
    _refuse_gaps(entries, data_nbytes)
    return tuple(entries)


def _entry(name: str, item: JsonValue) -> TensorEntry:
    if not name.isascii() or not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise Refusal(f"tensor name {shown(name)} is not 1 to {MAX_NAME_CHARACTERS} ASCII characters.")
    if not isinstance(item, dict) or item.keys() != {"dtype", "shape", "data_offsets"}:
        raise Refusal(f"tensor {shown(name)}: its header entry is not dtype, shape and data_offsets.")
    dtype_name = item["dtype"]
    dtype = _DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise Refusal(f"tensor {shown(name)}: dtype {shown(dtype_name)} is not supported; only F32, F16 and BF16 are.")
    shape = _counts(name, "shape", item["shape"])
    offsets = _counts(name, "data_offsets", item["data_offsets"])
    if len(shape) > MAX_DIMENSIONS or len(offsets) != 2:
        raise Refusal(f"tensor {shown(name)}: shape or data_offsets has the wrong number of values.")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes == 0:
        raise Refusal(f"tensor {shown(name)} has zero size.")
    if offsets[1] - offsets[0] != nbytes:
        raise Refusal(f"tensor {shown(name)}: {shown(list(shape))} needs {nbytes} bytes, data_offsets says otherwise.")
    return TensorEntry(name, dtype, shape, offsets[0], offsets[1])


def _counts(name: str, field: str, value: JsonValue) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise Refusal(f"tensor {shown(name)}: {field} is not a list.")
    counts = tuple(item for item in value if type(item) is int and 0 <= item < 2**48)  # bool is no count
    if len(counts) != len(value):
        raise Refusal(f"tensor {shown(name)}: {field} is {shown(value)}, not a list of counts.")
    return counts


def _refuse_gaps(entries: list[TensorEntry], data_nbytes: int) -> None:
    covered = 0
    for entry in entries:
        if entry.start != covered:
            raise Refusal(f"the weights file has a gap or overlap before tensor {shown(entry.name)}.")
        covered = entry.end
    if covered != data_nbytes:
        raise Refusal(f"the weights file is truncated or padded: its tensors cover {covered} of {data_nbytes} bytes.")
