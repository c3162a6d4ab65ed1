"""A breaker opens after five failures in a row, lets one probe through, and closes when the source answers."""

from __future__ import annotations

from loramux.adapters.circuit_breaker import LONGEST_OPEN_SECONDS, NUM_FAILURES_TO_OPEN, CircuitBreaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(clock, jitter=lambda: 0.0)
    for _ in range(NUM_FAILURES_TO_OPEN):
        assert breaker.seconds_to_wait() == 0
        breaker.begin()
        breaker.fail()
    return breaker


def test_five_failures_in_a_row_open_it_for_five_seconds() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert breaker.seconds_to_wait() == 5
    clock.now += 4
    assert breaker.seconds_to_wait() == 1
    clock.now += 1
    assert breaker.seconds_to_wait() == 0


def test_an_answer_between_failures_starts_the_count_again() -> None:
    breaker = CircuitBreaker(Clock())
    for _ in range(10):
        for _ in range(NUM_FAILURES_TO_OPEN - 1):
            breaker.fail()
        breaker.succeed()
    assert not breaker.is_open


def test_one_probe_at_a_time_is_let_through() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 5
    breaker.begin()
    assert breaker.seconds_to_wait() == 1
    breaker.succeed()
    assert breaker.seconds_to_wait() == 0
    assert not breaker.is_open


def test_each_failed_probe_doubles_the_wait_up_to_a_minute() -> None:
    clock = Clock()
    breaker = opened(clock)
    waits = []
    for _ in range(6):
        clock.now += breaker.seconds_to_wait()
        breaker.begin()
        breaker.fail()
        waits.append(breaker.seconds_to_wait())
    assert waits == [10, 20, 40, LONGEST_OPEN_SECONDS, LONGEST_OPEN_SECONDS, LONGEST_OPEN_SECONDS]


def test_a_probe_whose_caller_left_leaves_the_next_one_free() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 5
    breaker.begin()
    breaker.abandon()
    assert breaker.seconds_to_wait() == 0
