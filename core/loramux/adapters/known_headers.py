"""KnownHeaders: what was found out about a header, kept for the next file that begins with the same bytes.

Fine-tunes of one recipe differ in their numbers alone, and to check a header of some hundred tensors takes longer than
to read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from cachetools import LRUCache

from loramux.adapters.adapter_layout import AdapterLayout
from loramux.adapters.safetensors_header import TensorEntry

MAX_HEADERS = 32
MAX_NBYTES = 1 << 20  # of a config and header that are kept

Content = tuple[bytes, bytes, int]
"""Of a config, of a header, and how many bytes follow it: all that the checks of a header look at."""


@dataclass(frozen=True, slots=True)
class CheckedHeader:
    """A sound header: its tensors in the order of the file, and which of them changes which module."""

    entries: tuple[TensorEntry, ...]
    layout: AdapterLayout


class KnownHeaders:
    """The headers checked last, of adapters for one base model and one highest rank. Any thread may ask."""

    def __init__(self) -> None:
        self._checked: LRUCache[Content, CheckedHeader] = LRUCache(MAX_HEADERS)
        self._lock = Lock()

    def get(self, content: Content, check: Callable[[], CheckedHeader]) -> CheckedHeader:
        """What was found for the same content, to the byte, or else what `check` finds; what it raises is not kept."""
        with self._lock:
            checked = self._checked.get(content)
        if checked is not None:
            return checked
        checked = check()
        if len(content[0]) + len(content[1]) <= MAX_NBYTES:
            with self._lock:
                self._checked[content] = checked
        return checked
