"""`loramux bench`: a load for an engine or a server, a table of what came of it, and a status for scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from loramux.bench.arguments import Outputs
from loramux.bench.http_target import HTTPTarget
from loramux.bench.plan import Plan
from loramux.bench.plot import write_plot
from loramux.bench.report import HEADINGS, report, row
from loramux.bench.results import Run, faults
from loramux.bench.server_address import ServerAddress
from loramux.commands.printing import add_row, console, print_json, table
from loramux.config import EngineArgs
from loramux.lora.request import LoRARequest
from loramux.server.startup.open_files import SPARE_FILES, raise_limit


def measure_engine(plan: Plan, args: EngineArgs, adapters: Mapping[str, LoRARequest], outputs: Outputs) -> int:
    """Load a model into this process and measure it; return the exit status, 1 when a request did not go well."""
    from loramux.bench.engine_target import EngineTarget  # imports torch, which measuring a server does not need

    target = EngineTarget.start(args, adapters)
    try:
        runs = asyncio.run(plan.run_all(target, vocab_size=target.vocab_size))
        described = target.describe()
    finally:
        target.close()
    return _present(plan, runs, described, outputs)


def measure_server(plan: Plan, address: ServerAddress, vocab_size: int, outputs: Outputs) -> int:
    """Measure a server over HTTP; return the exit status, 1 when a request did not go well."""

    raise_limit(SPARE_FILES + (plan.concurrency or plan.load.num_requests))  # a connection for each that is under way

    async def measure() -> tuple[list[Run], Mapping[str, object]]:
        async with HTTPTarget.connect(address) as target:
            runs = await plan.run_all(target, vocab_size=vocab_size)
            return runs, {"base_url": address.base_url, "model": target.base_model}

    runs, described = asyncio.run(measure())
    return _present(plan, runs, described, outputs)


def _present(plan: Plan, runs: Sequence[Run], target: Mapping[str, object], outputs: Outputs) -> int:
    document = report(plan, runs, target=target)
    if outputs.output is not None:
        _write(outputs.output, document)
    if outputs.plot is not None:
        title = f"{Path(str(target['model'])).name}, {plan.load.num_requests} requests a run"
        write_plot(outputs.plot, runs, title=title)
    if outputs.as_json:
        print_json(document)
    else:
        _print(runs)
    return 0 if all(run.is_good for run in runs) else 1


def _print(runs: Sequence[Run]) -> None:
    out = console()
    rows = table(*HEADINGS)
    for run in runs:
        add_row(rows, *row(run))
    out.print(rows)
    for fault in faults(runs):
        out.print(f"not ok: {fault}", markup=False, soft_wrap=True)


def _write(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
