"""guidellm loads several adapters at once, and counts the tokens that the server counts."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from served import Served

NUM_REQUESTS = 20


async def test_adapters_under_load_answer_every_request_and_count_its_tokens(
    served: Served, names: tuple[str, ...], folders: dict[str, Path], snippet: dict[str, str], tmp_path: Path
) -> None:
    base, *adapters = names
    before = {kind: _tokens(served, kind) for kind in ("prompt", "generation")}

    reports = await asyncio.gather(
        *(
            asyncio.to_thread(_load, snippet["guidellm"], name, folders[base], tmp_path / str(index))
            for index, name in enumerate(adapters)
        )
    )

    for name, report in zip(adapters, reports, strict=True):
        (benchmark,) = report["benchmarks"]
        metrics = benchmark["metrics"]
        assert metrics["request_totals"] == {
            "successful": NUM_REQUESTS,
            "errored": 0,
            "incomplete": 0,
            "total": NUM_REQUESTS,
        }
        for kind, field in (("prompt", "prompt_token_count"), ("generation", "output_token_count")):
            counted = _tokens(served, kind)[name] - before[kind].get(name, 0)
            assert metrics[field]["successful"]["total_sum"] == counted > 0


def _load(snippet: str, name: str, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """Run the command of the docs for this model; its report."""
    folder.mkdir()
    model = f"{name},api_key=test-key"
    run = subprocess.run(
        snippet.replace("sql-lora", model).replace("/models/SmolLM2-135M-Instruct", str(tokenizer)),
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def _tokens(served: Served, kind: str) -> dict[str, float]:
    """The server's own counts by adapter, read as Prometheus reads them."""
    request = urllib.request.Request(f"{served.url}/metrics", headers={"Authorization": "Bearer test-key"})
    with urllib.request.urlopen(request) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    return {
        sample.labels["adapter"]: sample.value for sample in samples if sample.name == f"loramux:{kind}_tokens_total"
    }
