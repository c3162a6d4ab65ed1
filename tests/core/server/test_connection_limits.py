from __future__ import annotations

import pytest

from loramux.errors import EngineOverloaded
from loramux.metrics.metrics import Metrics
from loramux.server import connection_limits
from loramux.server.connection_limits import SPARE_CONNECTIONS, ConnectionLimits, client_of


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", None),
        ("127.255.255.254", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("", None),
        (None, None),
    ],
)
def test_an_address_tells_whose_connection_it_is(address: str | None, client: str | None) -> None:
    assert client_of(address) == client


def test_a_client_that_has_all_it_may_have_leaves_room_for_others_and_gets_some_back() -> None:
    limits = ConnectionLimits(Metrics().connections, max_per_client=2)
    places = [limits.take("192.0.2.1") for _ in range(2)]

    with pytest.raises(EngineOverloaded):
        limits.take("192.0.2.1")
    limits.take("192.0.2.2")
    limits.give_back(places[0])
    limits.take("192.0.2.1")


def test_loopback_has_no_limit_but_that_of_all() -> None:
    limits = ConnectionLimits(Metrics().connections, max_connections=10, max_per_client=1)

    places = [limits.take("127.0.0.1") for _ in range(10 + SPARE_CONNECTIONS)]

    assert [place.is_spare for place in places] == [False] * 10 + [True] * SPARE_CONNECTIONS
    with pytest.raises(EngineOverloaded):
        limits.take("::1")


def test_a_place_that_comes_back_is_given_out_as_what_it_was() -> None:
    limits = ConnectionLimits(Metrics().connections, max_connections=1)
    regular, spare = limits.take("127.0.0.1"), limits.take("127.0.0.1")

    limits.give_back(spare)
    assert limits.take("127.0.0.1").is_spare
    limits.give_back(regular)
    assert not limits.take("127.0.0.1").is_spare


def test_a_client_that_has_all_it_may_have_gets_no_spare_connection() -> None:
    limits = ConnectionLimits(Metrics().connections, max_connections=1, max_per_client=1)
    limits.take("192.0.2.1")

    with pytest.raises(EngineOverloaded):
        limits.take("192.0.2.1")
    assert limits.take("192.0.2.2").is_spare


def test_a_flood_of_refusals_is_one_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr(connection_limits.time, "monotonic", lambda: now)
    limits = ConnectionLimits(Metrics().connections)

    for _ in range(100):
        limits.refuse("server", "192.0.2.1")
    now += connection_limits.LOG_SECONDS
    limits.refuse("client", None)

    first, second = (record.getMessage() for record in caplog.records)
    assert "num=1 since" in first
    assert first.endswith("client=192.0.2.1: all --max-connections 2000 are open")
    assert "num=100 since" in second
