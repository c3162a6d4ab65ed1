"""The comparison as a picture: one panel for each case, one bar for each system, the ceiling as a line."""

from __future__ import annotations

from pathlib import Path

from comparison.cases import CASES
from comparison.report import Report
from comparison.systems import SYSTEMS

COLORS = {
    "loramux": "#d1495b",
    "transformers": "#30638e",
    "batching": "#7fa7c9",
    "peft": "#00798c",
    "llama_cpp": "#edae49",
    "openvino": "#8d96a3",
    "vllm": "#66589c",
}


def draw(report: Report, file: Path) -> None:
    """Write a PNG."""
    import matplotlib as mpl  # of the development environment alone

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    cases = [case for case in CASES if case.name in report.speeds]
    figure, panels = plt.subplots(
        len(cases),
        1,
        figsize=(8, 0.5 + sum(0.45 + 0.32 * len(report.speeds[case.name]) for case in cases)),
        height_ratios=[0.9 + len(report.speeds[case.name]) for case in cases],
        squeeze=False,
        layout="constrained",
    )
    for case, panel in zip(cases, panels[:, 0], strict=True):
        row = report.speeds[case.name]
        names = [name for name in SYSTEMS if name in row]
        medians = [row[name].median for name in names]
        errors = [
            [row[name].median - row[name].low for name in names],
            [row[name].high - row[name].median for name in names],
        ]
        panel.barh(
            [SYSTEMS[name].title for name in names],
            medians,
            xerr=errors,
            color=[COLORS[name] for name in names],
            error_kw={"ecolor": "#333333", "elinewidth": 1, "capsize": 2},
        )
        panel.bar_label(panel.containers[-1], labels=[f" {median:.3g}" for median in medians], padding=4)
        panel.invert_yaxis()
        panel.margins(x=0.12)
        panel.set_title(case.title, loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        ceiling = report.ceilings.get(case.name)
        if ceiling is not None:
            panel.axvline(ceiling.median, color="#333333", linestyle="--", linewidth=1)
            panel.annotate(
                f"the machine's limit: {ceiling.median:.3g}",
                (ceiling.median, 1),
                xycoords=("data", "axes fraction"),
                ha="right",
                va="bottom",
                fontsize=8,
            )
    panels[-1, 0].set_xlabel("output tokens per second")
    figure.savefig(file, dpi=130)
    plt.close(figure)
