from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loramux.bench.plot import check_plot, draw, write_plot
from loramux.bench.results import RequestResult, Run
from loramux.errors import ConfigInvalid


def run(num_adapters: int, milliseconds: float) -> Run:
    result = RequestResult(
        number=0,
        adapter=None,
        outcome="ok",
        due_seconds=0.0,
        ttft_seconds=milliseconds / 1000,
        latency_seconds=1.0,
        inter_token_seconds=[0.02],
        num_prompt_tokens=1,
        num_asked_tokens=2,
        num_output_tokens=2,
    )
    return Run(num_adapters=num_adapters, seconds=1.0, results=[result])


def test_the_plots_have_a_point_for_every_run_in_the_order_of_adapters() -> None:
    figure = draw([run(8, 80.0), run(0, 10.0), run(32, 320.0)], title="tiny")

    first, between, speed = figure.axes
    assert [list(line.get_xdata()) for line in first.lines] == [[0, 8, 32]] * 3
    assert list(first.lines[0].get_ydata()) == pytest.approx([10.0, 80.0, 320.0])
    assert list(between.lines[0].get_ydata()) == pytest.approx([20.0] * 3)
    assert list(speed.lines[0].get_ydata()) == pytest.approx([2.0] * 3)


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF"), ("html", b"<!doctype html>")]
)
def test_the_files_ending_says_its_form(tmp_path: Path, ending: str, start: bytes) -> None:
    path = tmp_path / f"plot.{ending}"

    write_plot(path, [run(1, 10.0)], title="a & b")

    assert path.read_bytes().startswith(start)


def test_a_page_holds_its_drawing_and_no_script(tmp_path: Path) -> None:
    write_plot(tmp_path / "plot.html", [run(1, 10.0)], title="<tiny>")

    page = (tmp_path / "plot.html").read_text()
    assert page.count("<svg") == 1
    assert "<title>&lt;tiny&gt;</title>" in page
    assert "<script" not in page


def test_another_ending_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"^--plot must end in .png, .svg, .pdf, .html; got 'plot.gif'$"):
        check_plot(Path("plot.gif"))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(ConfigInvalid, match=r"pip install 'loramux\[bench\]'"):
        check_plot(Path("plot.png"))
