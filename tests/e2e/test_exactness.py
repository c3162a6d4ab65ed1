"""A mixed batch gives every request what transformers + PEFT gives it alone, in every family that we claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from exactness import LOGIT_TOLERANCE, check_family
from families_table import TABLE, refusal
from refused_families import REFUSED
from tiny_models import FAMILIES


def test_the_table_in_the_docs_names_exactly_the_families_checked() -> None:
    cells = [line.split("|")[1].strip() for line in TABLE.read_text().splitlines() if line.startswith("| ")]

    assert [cell for cell in cells if cell not in ("family", "---")] == [*FAMILIES, *REFUSED]


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_would_be_served_wrong_is_refused_with_a_reason(family: str) -> None:
    assert "attention" in refusal(family) or "flattened batch" in refusal(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_under_pressure_equals_each_request_alone(family: str, tmp_path: Path) -> None:
    report = check_family(family, tmp_path)

    assert not report.wrong
    assert report.max_logit_error < LOGIT_TOLERANCE
    assert report.num_preemptions > 0, "the few blocks were meant to force preemption"
    assert report.num_placements >= 5, "five adapters on two slots were meant to take turns"
    assert report.num_cached_tokens > 0, "the shared prompts were meant to hit the prefix cache"
