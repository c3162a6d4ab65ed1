"""What the machine can do at best with the shapes of the model: GFLOP/s of float32 GEMMs, GB/s of memory reads.

A GEMM's figure is that of one pass over all weights of the model, one after another, so that they come from where a
step finds them. The best pass counts: of weights as they are stored, transposed, or packed by oneDNN for the number of
rows, whichever is fastest here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from peers.protocol import Answer, Job, Settings, serve

FEW_ROWS = 32
MANY_ROWS = (128, 512)
SECONDS = 0.6
READ_BYTES = 2**30


class MachineLimits:
    """Holds weights of the model's shapes, made when they are first asked for."""

    def __init__(self, _settings: Settings) -> None:
        self.weights: list[torch.Tensor] = []

    @torch.inference_mode()
    def run(self, job: Job) -> Answer:
        """Measure; `shapes` are (rows, columns) of each linear weight, that of the head last."""
        shapes = job.figures["shapes"]
        assert isinstance(shapes, list)
        if not self.weights:
            self.weights = [torch.randn(rows, columns) for rows, columns in shapes]
        figures = {f"gflops_{FEW_ROWS}": _gflops(self.weights, FEW_ROWS)}
        for rows in MANY_ROWS:
            figures[f"gflops_{rows}"] = _gflops(self.weights[:-1], rows)
        return Answer(figures={**figures, "read_gb": _read_gigabytes()})


def _gflops(weights: Sequence[torch.Tensor], num_rows: int) -> float:
    inputs = {weight.shape[1]: torch.randn(num_rows, weight.shape[1]) for weight in weights}
    flops = sum(2 * num_rows * weight.numel() for weight in weights)

    def plain() -> None:
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    reorder, product = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
    packed = [reorder(weight, num_rows) for weight in weights]

    def prepacked() -> None:
        for weight, reordered in zip(weights, packed, strict=True):
            product(inputs[weight.shape[1]], reordered, None, "none", [], "")

    transposed = [weight.t().contiguous() for weight in weights]

    def from_columns() -> None:
        for weight in transposed:
            torch.mm(inputs[weight.shape[0]], weight)

    return flops / min(_best_seconds(call) for call in (plain, prepacked, from_columns)) / 1e9


def _read_gigabytes() -> float:
    numbers = torch.ones(READ_BYTES // 4)
    matrix = numbers.view(-1, 1024)
    vector = torch.ones(1024)
    return READ_BYTES / min(_best_seconds(numbers.sum), _best_seconds(lambda: torch.mv(matrix, vector))) / 1e9


def _best_seconds(call: Callable[[], object]) -> float:
    best = float("inf")
    end = time.perf_counter() + SECONDS
    call()
    while True:
        began = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - began)
        if now > end:
            return best


if __name__ == "__main__":
    serve(MachineLimits, ("torch",))
