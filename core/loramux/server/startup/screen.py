"""What the operator sees when the server is ready: one screen, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from loramux import __version__
from loramux.config import StartupSummary
from loramux.lora.plugin_manager import PluginStatus
from loramux.server.startup.config import ServerConfig


@dataclass(frozen=True, slots=True)
class StartScreen:
    """All that the screen tells."""

    summary: StartupSummary
    config: ServerConfig
    plugins: Sequence[PluginStatus]
    url: str
    stored_nbytes: int | None = None  # None: no store is in use

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of every line."""
        summary = self.summary
        return [
            ("model", self._model()),
            ("device", f"{summary.device}, {summary.dtype}" + self._quantization()),
            (
                "KV cache",
                f"{summary.kv_tokens:,} tokens ({self._kv_cache()}): {summary.num_full_sequences} sequences of "
                f"{summary.max_model_len:,} tokens, more if shorter, at most {summary.max_num_seqs} at once",
            ),
            ("adapters", self._adapters()),
            *(("resolver" if index == 0 else "", line) for index, line in enumerate(self._resolvers())),
            *self._store(),
            ("access", "with an API key" if self.config.needs_key else self._open()),
            ("listening", self.url),
        ]

    def _model(self) -> str:
        names = self.config.engine.served_model_name
        return f"{self.summary.model}, served as {', '.join(names)}" if names else self.summary.model

    def _quantization(self) -> str:
        return f", {self.summary.quantization} weights" if self.summary.quantization else ""

    def _kv_cache(self) -> str:
        size, dtype = _size(self.summary.kv_bytes), self.summary.kv_cache_dtype
        return size if dtype == self.summary.dtype else f"{size}, {dtype}"

    def _open(self) -> str:
        return "OPEN TO EVERYBODY ON THE NETWORK" if self.config.is_public else "open to everybody on this machine"

    def _adapters(self) -> str:
        if not self.config.engine.enable_lora:
            return "off (--enable-lora turns them on)"
        summary = self.summary
        loaded = ", ".join(module.name for module in self.config.lora_modules)
        text = f"{summary.max_loras} slots, {summary.max_cpu_loras} in host memory, rank up to {summary.max_lora_rank}"
        return f"{text}; loaded: {loaded}" if loaded else text

    def _store(self) -> list[tuple[str, str]]:
        if self.stored_nbytes is None:
            return []
        store = self.config.store
        return [("store", f"{store.root}: {_size(self.stored_nbytes)}, at most {_size(store.max_bytes)}")]

    def _resolvers(self) -> list[str]:
        if not self.config.engine.enable_lora:
            return []
        return [_plugin_line(status) for status in self.plugins] or ["none installed"]


def show_start(screen: StartScreen) -> None:
    """Print the screen to standard output; the last line is the address, so that it says "ready"."""
    console = Console()
    if not console.is_terminal:
        sys.stdout.write("".join(f"{label or ' ':<10} {text}\n" for label, text in screen.lines()))
        sys.stdout.flush()
        return
    table = Table.grid(padding=(0, 2))
    for label, text in screen.lines():
        table.add_row(Text(label, style="bold"), Text(text))
    console.print(Panel(table, title=f"loramux {__version__}", title_align="left", expand=False))


def _plugin_line(status: PluginStatus) -> str:
    if status.reason:
        return f"{status.name} (inactive: {status.reason})"
    return f"{status.name}: {status.looks_in}" if status.looks_in else status.name


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"
