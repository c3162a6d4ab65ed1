"""Goals: what a benchmark found beside what it should be, and an exit status that says whether all are reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from loramux.bench.environment import environment


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure; `bound` is its least or its most."""

    title: str
    measured: float
    bound: float
    is_least: bool = True

    @property
    def is_reached(self) -> bool:
        return self.measured >= self.bound if self.is_least else self.measured <= self.bound


def show_goals(goals: Sequence[Goal], *, setting: str) -> int:
    """Print where it was measured, and the goals; return the exit status, 1 when one is missed."""
    console = Console(width=140, highlight=False)
    place = environment()
    console.print(
        f"{place['processor']}, {place['num_cores']} cores, torch {place['torch']}, loramux {place['loramux']}, "
        f"{place['date']}; {setting}",
        soft_wrap=True,
    )
    table = Table("goal", "measured", "bound", "reached")
    for goal in goals:
        bound = f"{'≥' if goal.is_least else '≤'} {goal.bound:g}"
        table.add_row(goal.title, f"{goal.measured:.3f}", bound, "yes" if goal.is_reached else "no")
    console.print(table)
    return 0 if all(goal.is_reached for goal in goals) else 1
