"""What the machine's limits allow: the tokens per second that no implementation in float32 can pass.

With W the linear weights of all layers, H those of lm_head (the embedding when they are tied; looking rows up in it is
no work), N requests of P prompt tokens and T new tokens each:

    prefill FLOPs = 2 · W · N · P                         at the GFLOP/s of a GEMM with many rows
    decode FLOPs  = 2 · W · N · (T - 1) + 2 · H · N · T   at the GFLOP/s of a GEMM with 32 rows
    ceiling       = N · T / (prefill seconds + decode seconds)

lm_head sees sampled rows alone, one per new token; the first of them comes out of the prefill, hence T - 1. One request
reads every weight once per token: its ceiling is memory reads per second ÷ bytes of W and H. Attention, norms,
activations and sampling count as nothing.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from comparison.cases import Case

FLOAT32_BYTES = 4
Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ModelWork:
    """The shapes (outputs, inputs) of a model's linear weights, its layers' and its head's."""

    layers: tuple[Shape, ...]
    head: Shape

    @property
    def shapes(self) -> list[Shape]:
        """All of them, the head last."""
        return [*self.layers, self.head]

    @property
    def weight_bytes(self) -> int:
        """Bytes that one token of one request reads."""
        return FLOAT32_BYTES * (_size(self.layers) + _size([self.head]))

    def batch_ceiling(self, case: Case, *, gflops_few: float, gflops_many: float) -> float:
        """Tokens per second of a batch, from the GFLOP/s of GEMMs with as many rows as requests, and with many."""
        layers, head = 2 * _size(self.layers), 2 * _size([self.head])
        prefill = layers * case.num_requests * case.prompt_length
        decode = layers * case.num_requests * (case.num_tokens - 1) + head * case.num_requests * case.num_tokens
        return case.num_requests * case.num_tokens / (prefill / gflops_many + decode / gflops_few) * 1e9

    def one_request_ceiling(self, read_gb: float) -> float:
        """Tokens per second of one request, from the GB per second that can be read."""
        return read_gb * 1e9 / self.weight_bytes


def model_work(folder: Path) -> ModelWork:
    """Read the shapes from the headers of safetensors files; every 2-D weight but the embedding is linear."""
    shapes = {name: shape for file in sorted(folder.glob("*.safetensors")) for name, shape in _header(file).items()}
    linear = {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}
    embeddings = {name: shape for name, shape in linear.items() if "embed" in name}
    head = linear.pop("lm_head.weight", None) or next(iter(embeddings.values()))
    return ModelWork(tuple(shape for name, shape in linear.items() if name not in embeddings), head)


def _header(file: Path) -> dict[str, list[int]]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        content = json.loads(stream.read(length))
    return {name: entry["shape"] for name, entry in content.items() if name != "__metadata__"}


def _size(shapes: tuple[Shape, ...] | list[Shape]) -> int:
    return sum(rows * columns for rows, columns in shapes)
