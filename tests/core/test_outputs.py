"""Outputs say when they are finished and cannot be changed by who reads them."""

import dataclasses

import pytest

from loramux.outputs import CompletionOutput, RequestOutput


def test_an_answer_is_finished_when_it_has_a_reason() -> None:
    assert not CompletionOutput(index=0, text="a", token_ids=[1]).finished
    assert CompletionOutput(index=0, text="a", token_ids=[1], finish_reason="length").finished


def test_outputs_are_frozen() -> None:
    output = RequestOutput("r", "p", [1], None, [], finished=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        output.finished = True  # type: ignore[misc]  # the promise under test
