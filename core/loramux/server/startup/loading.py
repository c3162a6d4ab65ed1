"""Progress while a model loads: transformers' own bars, drawn by rich, and only where there is a terminal.

Much of the work has no bar of its own (a GGUF file is read and unpacked for half a minute), so a moving one says all
the while for how long it has been going on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from transformers.utils import logging as transformers_logging

from loramux import __version__


@contextmanager
def show_loading(model: str, *, is_quiet: bool = False) -> Iterator[None]:
    """Say on standard error what is loaded, and how far it is; or nothing at all, not even what transformers would."""
    console = Console(stderr=True, quiet=is_quiet)
    console.print(Text(f"loramux {__version__}: loading {model}"))
    bars = _Bars(console)
    previous = transformers_logging.set_tqdm_hook(bars.new)
    bars.progress.add_task("Loading", total=None)
    bars.progress.start()
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)
        bars.progress.stop()


class _Bars:
    """The bars of one loading, one below the other."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        is_shown = console.is_terminal and not console.quiet
        self.progress = Progress(*columns, console=console, transient=True, disable=not is_shown)

    def new(self, _: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]) -> _Bar:
        """Stand in for tqdm: takes its arguments, gives what is used like one."""
        return _Bar(self.progress, arguments[0] if arguments else options.get("iterable"), options)


class _Bar:
    def __init__(self, progress: Progress, items: Any, options: Mapping[str, Any]) -> None:
        self._progress = progress
        self._items = items
        total = options.get("total", len(items) if hasattr(items, "__len__") else None)
        self._task = progress.add_task(str(options.get("desc") or "Loading"), total=total)

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self._items:
                yield item
                self.update()
        finally:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Take part in what else a tqdm can do (set_postfix, refresh, …) by doing nothing."""
        return lambda *_, **__: None

    def update(self, count: float = 1) -> None:
        self._progress.advance(self._task, count)

    def close(self) -> None:
        if self._task in self._progress.task_ids:
            self._progress.remove_task(self._task)
