"""Traffic: how many requests each model got so far, and how many tokens it has answered, token by token."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

MAX_MODELS = 16_384
"""Beyond that, the one that was asked longest ago is forgotten."""


@dataclass(slots=True)
class ModelTraffic:
    """One model's counters; the name is None for the base model."""

    name: str | None
    num_requests: int = 0
    num_tokens: int = 0


class Traffic:
    """Counts while answers grow, unlike the metrics, which count what has ended. For one event loop."""

    def __init__(self, max_models: int = MAX_MODELS) -> None:
        self.total = ModelTraffic(None)
        self._max_models = max_models
        self._models: OrderedDict[str | None, ModelTraffic] = OrderedDict()

    def count_request(self, name: str | None) -> None:
        """Count one more request for a model, when it begins."""
        model = self._models.setdefault(name, ModelTraffic(name))
        self._models.move_to_end(name)
        model.num_requests += 1
        self.total.num_requests += 1
        if len(self._models) > self._max_models:
            self._models.popitem(last=False)

    def count_tokens(self, name: str | None, num_tokens: int) -> None:
        """Count new tokens of an answer."""
        self.total.num_tokens += num_tokens
        model = self._models.get(name)
        if model is not None:
            model.num_tokens += num_tokens

    def __iter__(self) -> Iterator[ModelTraffic]:
        return iter(self._models.values())
