"""Whoever waits gets its turn: tenants share what is admitted, and nobody pays for what was never admitted."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux.engine.fair_queue import FairQueue
from loramux.engine.request import Request
from loramux.sampling_params import SamplingParams

_ids = count()


def request(tenant: str | None, cost: int = 10, name: str | None = None) -> Request:
    """A request of `cost` tokens in all."""
    name = f"{tenant}-{next(_ids)}" if name is None else name
    return Request(name, [0], SamplingParams(max_tokens=cost - 1), digest=None, max_total_tokens=10_000, tenant=tenant)


def admit_next(queue: FairQueue) -> Request:
    chosen = next(iter(queue))
    queue.admit(chosen)
    return chosen


def admit_all(queue: FairQueue) -> list[str | None]:
    return [admit_next(queue).tenant for _ in range(len(queue))]


@pytest.mark.parametrize("tenant", [None, "a"])
def test_one_tenant_alone_is_served_in_order_of_arrival(tenant: str | None) -> None:
    queue = FairQueue()
    requests = [request(tenant, cost) for cost in (50, 2, 900, 7, 2)]
    for each in requests:
        queue.push(each)

    assert list(queue) == requests
    assert [admit_next(queue) for _ in requests] == requests


def test_a_newcomer_comes_before_what_others_have_piled_up() -> None:
    queue = FairQueue()
    for _ in range(1000):
        queue.push(request("a"))
    for _ in range(100):
        admit_next(queue)

    queue.push(request("b"))

    assert admit_all(queue)[:2].count("b") == 1


def test_who_was_idle_has_saved_up_nothing() -> None:
    queue = FairQueue()
    for _ in range(50):
        queue.push(request("a"))
    for _ in range(20):
        admit_next(queue)
    for _ in range(20):
        queue.push(request("b"))

    order = admit_all(queue)

    assert order[:20].count("b") in (9, 10, 11)


def test_costly_requests_wait_longer_for_the_next() -> None:
    queue = FairQueue()
    for _ in range(4):
        queue.push(request("big", 100))
    for _ in range(40):
        queue.push(request("small", 10))

    order = admit_all(queue)

    assert order[:22].count("big") == 2


def test_a_request_without_a_limit_counts_as_long_as_it_may_get() -> None:
    unlimited = Request("x", [0] * 5, SamplingParams(max_tokens=None), digest=None, max_total_tokens=64)

    assert unlimited.max_num_tokens == 64


def test_what_was_admitted_before_comes_first_and_is_counted_once() -> None:
    queue = FairQueue()
    for tenant in "aab":
        queue.push(request(tenant))
    first, second = admit_next(queue), admit_next(queue)

    queue.push_front(second)
    queue.push_front(first)

    assert [admit_next(queue), admit_next(queue)] == [first, second]
    assert admit_all(queue) == ["a"]


def test_what_left_the_queue_is_not_paid_for() -> None:
    queue = FairQueue()
    queue.push(request("b"))
    given_up = [request("a") for _ in range(100)]
    for each in given_up:
        queue.push(each)
    for each in given_up:
        queue.remove(each)
    for _ in range(4):
        queue.push(request("b"))

    queue.push(request("a"))

    assert admit_all(queue)[:2].count("a") == 1


def test_an_idle_tenant_is_forgotten() -> None:
    queue = FairQueue()
    for index in range(100):
        queue.push(request(f"once-{index}"))
    for _ in range(10):
        queue.push(request("steady"))
    while len(queue) > 5:
        admit_next(queue)
    assert queue.num_tenants == 1

    admit_all(queue)

    assert queue.num_tenants == 0


requests_of_tenants = st.lists(st.tuples(st.sampled_from("abc"), st.integers(2, 100)), min_size=1, max_size=60)


@given(requests_of_tenants, st.data())
def test_nothing_is_lost_and_each_tenant_keeps_its_own_order(arrivals, data) -> None:
    """Arrivals, admissions anywhere in the queue, returns and departures, in any order."""
    queue, waiting, admitted, returned = FairQueue(), [], [], set()
    for tenant, cost in arrivals:
        waiting.append(request(tenant, cost))
        queue.push(waiting[-1])
        action = data.draw(st.sampled_from(["nothing", "admit", "admit any", "remove", "push_front"]))
        if action == "push_front" and admitted:
            waiting.insert(0, admitted.pop())
            queue.push_front(waiting[0])
            returned.add(waiting[0].request_id)
        elif action in ("admit", "admit any", "remove") and waiting:
            position = 0 if action == "admit" else data.draw(st.integers(0, len(waiting) - 1))
            chosen = list(queue)[position]
            waiting.remove(chosen)
            (queue.remove if action == "remove" else queue.admit)(chosen)
            if action != "remove":
                admitted.append(chosen)
        assert len(queue) == len(waiting)
        assert {each.request_id for each in queue} == {each.request_id for each in waiting}

    order = list(queue)
    num_resumed = sum(each.request_id in returned for each in order)
    assert {each.request_id for each in order[:num_resumed]} <= returned
    for tenant in "abc":
        arrived = [int(each.request_id.split("-")[1]) for each in order[num_resumed:] if each.tenant == tenant]
        assert arrived == sorted(arrived)


@given(st.lists(st.integers(2, 100), min_size=1, max_size=40), st.lists(st.integers(2, 100), min_size=1, max_size=40))
def test_of_two_that_both_wait_neither_gets_more_than_a_request_of_each_ahead(
    mine: list[int], yours: list[int]
) -> None:
    queue = FairQueue()
    for cost in mine:
        queue.push(request("mine", cost))
    for cost in yours:
        queue.push(request("yours", cost))
    had = {"mine": 0, "yours": 0}
    left = {"mine": len(mine), "yours": len(yours)}

    while all(left.values()):
        chosen = admit_next(queue)
        had[chosen.tenant] += chosen.max_num_tokens
        left[chosen.tenant] -= 1
        if all(left.values()):
            assert abs(had["mine"] - had["yours"]) <= max(mine) + max(yours)
