"""What adapters cost at best, by arithmetic alone: `python contrib/benchmarks/roofline.py`.

Bytes, FLOPs and launches of a decode step, and of a prefill, of Llama-3.1-8B: the base model alone, with mixed adapters
by the scheme of loramux_kernels, and by that of the peers (costs/ has both, and where the figures of the devices come
from). A launch takes its launch cost, and then as long as the slowest of memory, cache and arithmetic at their peaks;
one runs at a time. This is a bound and no measurement: kernels are slower than their peaks, some more than others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console
from rich.table import Table

from costs.base_model import base_step
from costs.batch import Batch
from costs.hardware import A100, H100, Hardware
from costs.lora_scheme import lora_step
from costs.model_shape import LLAMA_3_1_8B, ModelShape
from costs.peers_scheme import PeerServer, peers_step
from costs.work import Step

NUM_ADAPTERS = (1, 8, 32, 128)
RANKS = (8, 16, 64, 256)
BATCHES = (32, 128)
PREFILL_ROWS = (512, 2048, 8192)
PREFILL_ADAPTERS = (1, 8)
PREFILL_RANKS = (16, 64)
CONTEXT = 1024
MAX_RANK = 64


@dataclass(frozen=True, slots=True)
class Case:
    """One line: a batch by each scheme, beside the same batch of the base model. num_adapters, rank: 0 for none."""

    num_adapters: int
    rank: int
    num_rows: int
    base: Step
    ours: Step
    peers: Step

    @classmethod
    def of(cls, shape: ModelShape, batch: Batch, *, max_rank: int) -> Case:
        """A server has as many slots as the batch has adapters, and room for the highest of their ranks."""
        rank = max((one.rank for one in batch.adapters), default=0)
        server = PeerServer(max(max_rank, rank), len(batch.adapters))
        base = base_step(shape, batch)
        ours = base + lora_step(shape, batch, max_rank=server.max_rank)
        peers = base + peers_step(shape, batch, server)
        return cls(len(batch.adapters), rank, batch.num_rows, base, ours, peers)


def main() -> int:
    """Print two tables per device: decode and prefill."""
    arguments = _parse(sys.argv[1:])
    shape = LLAMA_3_1_8B
    decode = [Case.of(shape, batch, max_rank=arguments.max_rank) for batch in _decode_batches(arguments)]
    prefill = [Case.of(shape, batch, max_rank=arguments.max_rank) for batch in _prefill_batches()]
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False)
    for device in (A100, H100):
        hardware = replace(device, launch_seconds=arguments.launch_us * 1e-6)
        place = f"{shape.name} in 16 bits on {hardware.name}, {arguments.launch_us:g} µs per launch"
        for what, cases in ((f"decode, {arguments.context} tokens of context", decode), ("prefill", prefill)):
            console.print(f"{place}: {what}\n", _table(cases, hardware))
    return 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=CONTEXT, help="tokens in every sequence's cache (1024)")
    parser.add_argument("--launch-us", type=float, default=A100.launch_seconds * 1e6, help="µs per launch (3)")
    parser.add_argument("--max-rank", type=int, default=MAX_RANK, help="that servers were started with (64)")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, metavar="RANK", help="(8 16 64 256)")
    return parser.parse_args(words)


def _decode_batches(arguments: argparse.Namespace) -> Iterator[Batch]:
    for num_rows in BATCHES:
        yield Batch.decode(num_rows, context=arguments.context)
        for num_adapters in (number for number in NUM_ADAPTERS if number <= num_rows):
            for rank in arguments.ranks:
                yield Batch.decode(num_rows, context=arguments.context, num_adapters=num_adapters, rank=rank)


def _prefill_batches() -> Iterator[Batch]:
    for num_rows in PREFILL_ROWS:
        yield Batch.prefill(num_rows, max(PREFILL_ADAPTERS))
        for num_adapters in PREFILL_ADAPTERS:
            for rank in PREFILL_RANKS:
                yield Batch.prefill(num_rows, max(PREFILL_ADAPTERS), num_adapters=num_adapters, rank=rank)


def _table(cases: Sequence[Case], hardware: Hardware) -> Table:
    table = Table(box=box.MARKDOWN)
    for name in ("rows", "adapters", "rank"):
        table.add_column(name, justify="right")
    for scheme in ("", "peers' "):
        for name in ("GB", "TFLOP", "launches", "ms", "mixed/base"):
            table.add_column(scheme + name, justify="right")
    table.add_column("peers' idle programs", justify="right")
    for case in cases:
        row = [str(case.num_rows), str(case.num_adapters), str(case.rank), *_figures(case.ours, case, hardware)]
        if case.num_adapters:
            row += [*_figures(case.peers, case, hardware), f"{case.peers.idle_programs:,}"]
        table.add_row(*row)
    return table


def _figures(step: Step, case: Case, hardware: Hardware) -> tuple[str, str, str, str, str]:
    seconds = step.seconds(hardware)
    ratio = f"{case.base.seconds(hardware) / seconds:.2f}"
    return f"{step.nbytes / 1e9:.2f}", f"{step.flops / 1e12:.2f}", str(step.num_launches), f"{1e3 * seconds:.2f}", ratio


if __name__ == "__main__":
    sys.exit(main())
