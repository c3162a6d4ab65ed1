from __future__ import annotations

from pathlib import Path

import pytest

from loramux.bench.replay import read_replay
from loramux.errors import ConfigInvalid


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def test_a_log_is_sent_in_the_order_and_at_the_times_of_its_arrivals(log: Path) -> None:
    log.write_text(
        '{"arrival_seconds": 2.5, "model": "sql", "prompt": "SELECT", "max_tokens": 3}\n\n'
        '{"arrival_seconds": 1, "model": null, "prompt_tokens": 7, "max_tokens": 2, "user": "ignored"}\n'
        '{"arrival_seconds": 3, "model": "base", "prompt": [5, 6], "max_tokens": 1}\n'
    )

    replay = read_replay(log, seed=0)
    requests = replay.requests(vocab_size=50)

    assert [(request.due_seconds, request.adapter, request.max_tokens) for request in requests] == [
        (1.0, None, 2),
        (2.5, "sql", 3),
        (3.0, None, 1),
    ]
    assert (requests[1].prompt, requests[2].prompt) == ("SELECT", (5, 6))
    assert len(requests[0].prompt) == 7
    assert replay.adapters == (None, "sql")


def test_without_arrivals_the_lines_keep_their_order(log: Path) -> None:
    log.write_text('{"model": "b", "prompt": "x", "max_tokens": 1}\n{"model": "a", "prompt": "x", "max_tokens": 1}\n')

    replay = read_replay(log, seed=0)

    assert not replay.has_arrivals
    assert [request.adapter for request in replay.requests(50)] == ["b", "a"]


def test_what_warms_up_asks_the_same_models_with_other_prompts(log: Path) -> None:
    log.write_text('{"model": "b", "prompt": [1, 2], "max_tokens": 4}\n' * 3)

    warm_up = read_replay(log, seed=0).warm_up(2, 50)

    assert [(request.adapter, request.max_tokens, len(request.prompt)) for request in warm_up] == [("b", 4, 16)] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Invalid JSON"),
        ('{"prompt": "x"}', "line 2: max_tokens: Field required"),
        ('{"prompt": "x", "max_tokens": 0}', "line 2: max_tokens: Input should be greater than or equal to 1"),
        ('{"prompt": "x", "max_tokens": "4"}', "line 2: max_tokens: Input should be a valid integer"),
        ('{"max_tokens": 4}', "line 2: Value error, give either prompt or prompt_tokens"),
        ('{"prompt": "x", "prompt_tokens": 4, "max_tokens": 4}', "give either prompt or prompt_tokens"),
        ('{"prompt_tokens": 4, "max_tokens": 4, "arrival_seconds": -1}', "line 2: arrival_seconds: Input should be"),
        ('{"prompt_tokens": 4, "max_tokens": 4, "arrival_seconds": NaN}', "line 2: Invalid JSON|arrival_seconds"),
    ],
)
def test_a_line_that_is_no_request_is_named(log: Path, line: str, message: str) -> None:
    log.write_text('{"prompt": "x", "max_tokens": 1}\n' + line + "\n")

    with pytest.raises(ConfigInvalid, match=message):
        read_replay(log, seed=0)


def test_a_log_that_is_empty_or_not_there_is_refused(log: Path) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_replay(log, seed=0)
    log.write_text("\n")
    with pytest.raises(ConfigInvalid, match="holds no request"):
        read_replay(log, seed=0)
