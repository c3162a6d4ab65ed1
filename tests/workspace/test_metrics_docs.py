"""docs/metrics.md lists exactly the metrics that a server has, each with its type and its labels."""

from __future__ import annotations

import re
from pathlib import Path

from loramux.adapters.resolution import TraceStep
from loramux.metrics.metrics import Metrics
from loramux.metrics.request_series import FinishedCompletion
from loramux.metrics.state import EngineState, ServerState, TierState

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"\| `([a-z]+:\w+)` \| (counter|gauge|histogram) \|([^|]*)\| [^|]{10,} \|")

Described = tuple[str, frozenset[str]]


def everything() -> dict[str, Described]:
    """Type and labels of each metric of a server where everything has happened once."""
    metrics = Metrics()
    metrics.requests.count_http("GET", "/", 200)
    metrics.requests.count_completion(
        FinishedCompletion(
            has_model=True,
            adapter_name="sql",
            finish_reason="stop",
            status=200,
            error_code="",
            seconds=1.0,
            queue_seconds=1.0,
            first_token_seconds=1.0,
            inter_token_seconds=[1.0],
            num_prompt_tokens=1,
        )
    )
    metrics.adapters.count_step(TraceStep("s3", "found", "", 1.0))
    metrics.adapters.observe_load("disk_to_host", 1.0)
    state = ServerState(base_model_name="tiny", engine=EngineState(), disk=TierState(), sources={"s3": 0.0})
    return {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            frozenset(label for sample in family.samples for label in sample.labels if label != "le"),
        )
        for family in metrics.families(state)
    }


def listed() -> dict[str, Described]:
    rows = ROW.findall(DOCS.read_text(encoding="utf-8"))
    return {name: (type_, frozenset(re.findall(r"`(\w+)`", labels))) for name, type_, labels in rows}


def test_the_page_lists_every_metric_with_its_type_and_its_labels() -> None:
    assert listed() == everything()


def test_no_row_of_the_page_escapes_this_test() -> None:
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if re.match(r"\| `\w+:", line)]

    assert [line for line in rows if not ROW.fullmatch(line)] == []
