"""AdapterLabels: which value of the label `adapter` a request is counted under.

The number of values is bounded however many adapters come and go, and only what a request was really answered with
becomes one: a name that a client made up never does.
"""

from __future__ import annotations

BASE = "base"
NONE = "none"
OTHER = "other"
RESERVED = frozenset({BASE, NONE, OTHER})

MAX_ADAPTER_LABELS = 1_000


class AdapterLabels:
    """The first `limit` adapters have labels of their own, all later ones share "other". For one thread."""

    def __init__(self, limit: int = MAX_ADAPTER_LABELS) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def label_of(self, adapter_name: str) -> str:
        """Return the adapter's label, which stays the same for ever; one that is called like ours is "other"."""
        if adapter_name in self._known:
            return adapter_name
        if adapter_name in RESERVED or len(self._known) >= self._limit:
            return OTHER
        self._known.add(adapter_name)
        return adapter_name
