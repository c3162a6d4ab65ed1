"""The adapter's life in any order of events: see lifecycle_machine.py."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from lifecycle_machine import LifecycleMachine


@pytest.mark.parametrize(("num_examples", "num_steps"), [(25, 25), pytest.param(1_000, 60, marks=pytest.mark.campaign)])
def test_whatever_happens_the_invariants_hold(num_examples: int, num_steps: int) -> None:
    run_state_machine_as_test(
        LifecycleMachine,
        settings=settings(
            max_examples=num_examples,
            stateful_step_count=num_steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
