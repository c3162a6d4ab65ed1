from __future__ import annotations

import pytest

from loramux.metrics.adapter_labels import RESERVED, AdapterLabels


def test_the_first_adapters_keep_their_labels_and_later_ones_share_one() -> None:
    labels = AdapterLabels(limit=2)

    assert [labels.label_of(name) for name in ("a", "b", "c", "d", "a")] == ["a", "b", "other", "other", "a"]


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_an_adapter_cannot_be_counted_as_something_else(name: str) -> None:
    assert AdapterLabels().label_of(name) == "other"
