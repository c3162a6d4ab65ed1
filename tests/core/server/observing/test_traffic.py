from __future__ import annotations

from loramux.server.observing.traffic import Traffic


def counted(traffic: Traffic) -> dict[str | None, tuple[int, int]]:
    return {model.name: (model.num_requests, model.num_tokens) for model in traffic}


def test_each_model_and_all_together_are_counted() -> None:
    traffic = Traffic()
    traffic.count_request("sql")
    traffic.count_tokens("sql", 3)
    traffic.count_request(None)
    traffic.count_tokens(None, 2)
    traffic.count_tokens("sql", 1)

    assert counted(traffic) == {"sql": (1, 4), None: (1, 2)}
    assert (traffic.total.num_requests, traffic.total.num_tokens) == (2, 6)


def test_the_model_that_was_asked_longest_ago_is_forgotten_but_not_its_part_of_the_total() -> None:
    traffic = Traffic(max_models=2)
    for name in ("a", "b", "a", "c"):
        traffic.count_request(name)
    traffic.count_tokens("b", 5)

    assert counted(traffic) == {"a": (2, 0), "c": (1, 0)}
    assert (traffic.total.num_requests, traffic.total.num_tokens) == (4, 5)
