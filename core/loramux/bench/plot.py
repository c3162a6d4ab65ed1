"""Plots of a sweep over the number of adapters: time to first token, inter-token time, throughput."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loramux.bench.results import Percentiles, Run
from loramux.errors import ConfigInvalid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf", ".html")
_SHARES = ("p50", "p90", "p99")


def check_plot(path: Path) -> None:
    """Refuse, before anything is measured, what could not be drawn; raises ConfigInvalid."""
    if path.suffix not in ENDINGS:
        raise ConfigInvalid(f"--plot must end in {', '.join(ENDINGS)}; got {str(path)!r}")
    try:
        import matplotlib.figure  # noqa: F401  # optional, and slow to import: only for those who want a plot
    except ImportError as exc:
        raise ConfigInvalid("--plot needs matplotlib: pip install 'loramux[bench]'") from exc


def write_plot(path: Path, runs: Sequence[Run], *, title: str) -> None:
    """Draw the runs over their number of adapters; an .html file is a page around one SVG, without scripts."""
    figure = draw(runs, title=title)
    if path.suffix != ".html":
        figure.savefig(path)
        return
    svg = io.StringIO()
    figure.savefig(svg, format="svg")
    drawing = svg.getvalue().partition("<svg")
    page = f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<svg{drawing[2]}'
    path.write_text(page, encoding="utf-8")


def draw(runs: Sequence[Run], *, title: str) -> Figure:
    """Return the three plots, side by side."""
    from matplotlib.figure import Figure  # see check_plot

    ordered = sorted(runs, key=lambda run: run.num_adapters)
    places = [run.num_adapters for run in ordered]
    summaries = [run.summary() for run in ordered]
    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle(title)
    first, between, speed = figure.subplots(1, 3)
    _draw_times(first, places, [one.ttft_seconds for one in summaries], "time to first token (ms)")
    _draw_times(between, places, [one.inter_token_seconds for one in summaries], "between tokens (ms)")
    speed.plot(places, [one.output_tokens_per_second for one in summaries], marker="o")
    _finish(speed, places, "output tokens per second")
    return figure


def _draw_times(axes: Axes, places: Sequence[int], times: Sequence[Percentiles | None], label: str) -> None:
    for share in _SHARES:
        values = [float("nan") if one is None else 1000 * getattr(one, share) for one in times]
        axes.plot(places, values, marker="o", label=share)
    axes.legend()
    _finish(axes, places, label)


def _finish(axes: Axes, places: Sequence[int], label: str) -> None:
    axes.set_xscale("symlog", base=2, linthresh=1)  # 0, the base model alone, has its place too
    axes.set_xticks(places, [str(place) for place in places])
    axes.set_xlabel("adapters")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
