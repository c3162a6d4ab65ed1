"""The comparison as tables: speeds, goals, the machine's limits, checks; Markdown, so that it can be pasted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from comparison.cases import Case
from comparison.ceiling import ModelWork
from comparison.checks import Checked
from comparison.goals import GOALS, RoundFigures, Spread, spread, values_of
from comparison.rounds import Outcome
from comparison.systems import SYSTEMS

LIMITS = {
    "gflops_32": "float32 GEMM at 32 rows, GFLOP/s",
    "gflops_128": "float32 GEMM at 128 rows, GFLOP/s",
    "gflops_512": "float32 GEMM at 512 rows, GFLOP/s",
    "read_gb": "memory reads, GB/s",
}


@dataclass(frozen=True, slots=True)
class GoalResult:
    """A goal, what the rounds came to, and whether the median reaches it; None where nothing was measured."""

    title: str
    bound: str
    ratio: Spread | None
    is_reached: bool | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is printed, drawn and written."""

    setting: Mapping[str, str]
    speeds: Mapping[str, Mapping[str, Spread]]  # case → system → tokens per second
    figures: Mapping[str, Spread]
    ceilings: Mapping[str, Spread]
    goals: Sequence[GoalResult]
    checked: Checked
    failures: Sequence[str]

    def as_json(self) -> dict[str, object]:
        """Plain values, under the names of the fields."""
        return asdict(self)


def make_report(setting: Mapping[str, str], outcome: Outcome, checked: Checked, work: ModelWork) -> Report:
    """Bring the rounds to medians with their spread."""
    numbers = sorted({one.round for one in outcome.measured})
    rounds = {
        number: RoundFigures([one for one in outcome.measured if one.round == number], work) for number in numbers
    }
    return Report(
        setting=setting,
        speeds=_speeds(outcome),
        figures=_figures(outcome),
        ceilings=_ceilings(rounds),
        goals=[_goal_result(rounds, index) for index in range(len(GOALS))],
        checked=checked,
        failures=outcome.failures,
    )


def _speeds(outcome: Outcome) -> dict[str, dict[str, Spread]]:
    values: dict[str, dict[str, list[float]]] = {}
    for one in outcome.measured:
        if one.case.kind == "generate":
            values.setdefault(one.case.name, {}).setdefault(one.system, []).append(one.tokens_per_second)
    return {case: {system: _spread(speeds) for system, speeds in row.items()} for case, row in values.items()}


def _figures(outcome: Outcome) -> dict[str, Spread]:
    values: dict[str, list[float]] = {}
    for one in outcome.measured:
        for name, value in one.done.figures.items():
            values.setdefault(name, []).append(value)
    return {name: _spread(figures) for name, figures in values.items()}


def _ceilings(rounds: Mapping[int, RoundFigures]) -> dict[str, Spread]:
    """One for each case that has one; none where the machine's limits were not measured."""
    ceilings = {"base": RoundFigures.base_ceiling, "one-request": RoundFigures.one_request_ceiling}
    found = {case: spread(values_of(rounds, ceiling)) for case, ceiling in ceilings.items()}
    return {case: one for case, one in found.items() if one is not None}


def _spread(values: Sequence[float]) -> Spread:
    found = spread(values)
    assert found is not None
    return found


def _goal_result(rounds: Mapping[int, RoundFigures], index: int) -> GoalResult:
    goal = GOALS[index]
    ratio = spread(values_of(rounds, goal.value))
    bound = f"{'≥' if goal.at_least else '≤'} {goal.bound}"
    return GoalResult(goal.title, bound, ratio, None if ratio is None else goal.is_reached_by(ratio.median))


def show(report: Report, cases: Sequence[Case], console: Console) -> None:
    """Print the tables."""
    for name, value in report.setting.items():
        console.print(f"{name}: {value}", markup=False, soft_wrap=True)
    console.print(_speed_table(report, cases))
    if any(goal.ratio is not None for goal in report.goals):
        console.print(_goal_table(report))
    limits = _table("the machine, in the same run", "median (min..max)")
    for name, title in LIMITS.items():
        if name in report.figures:
            limits.add_row(title, _shown(report.figures[name]))
    if limits.row_count:
        console.print(limits)
    checked = report.checked
    console.print(
        f"{checked.num_compared} answers of systems with the same weights compared: {len(checked.wrong)} wrong, "
        f"{checked.ties} part at a tie"
    )
    for text in (*checked.wrong, *report.failures):
        console.print(text, markup=False, style="red")


def _speed_table(report: Report, cases: Sequence[Case]) -> Table:
    systems = [name for name in SYSTEMS if any(name in row for row in report.speeds.values())]
    table = _table("output tokens/s, median (min..max)", *(SYSTEMS[name].title for name in systems), "ceiling")
    for case in cases:
        row = report.speeds.get(case.name)
        if row is not None:
            cells = [_shown(row[name]) if name in row else "-" for name in systems]
            ceiling = report.ceilings.get(case.name)
            table.add_row(case.title, *cells, _shown(ceiling) if ceiling else "-")
    return table


def _goal_table(report: Report) -> Table:
    table = _table("ratio of one round, median (min..max)", "goal", "measured", "reached")
    for goal in report.goals:
        if goal.ratio is not None:
            table.add_row(goal.title, goal.bound, _shown(goal.ratio, digits=2), "yes" if goal.is_reached else "no")
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.MARKDOWN)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _shown(value: Spread, digits: int | None = None) -> str:
    if digits is None:
        digits = 0 if value.median >= 100 else 1
    return f"{value.median:.{digits}f} ({value.low:.{digits}f}..{value.high:.{digits}f})"
