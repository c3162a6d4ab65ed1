"""A bucket behind the core: what it makes of this plugin's answers and faults."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import faulty_s3
from faulty_s3 import Answer
from loramux.adapters import retrying
from loramux.adapters.disk_store import DiskStore
from loramux.adapters.materializer import Materializer
from loramux.adapters.resolver_chain import ResolverChain
from loramux.errors import AdapterNotFound, ResolverFailed
from loramux.lora.plugin_manager import ActiveResolver
from s3_cases import Adapters, assert_shows_no_secret

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_DELAY_SECONDS", 0.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    with DiskStore.open(tmp_path / "store", min_free_bytes=0) as store:
        yield store


def weights_of(adapters: Adapters, store: DiskStore, name: str = "team/sql") -> bytes:
    """The weights that the chain finds, read from the store."""

    async def resolve() -> bytes:
        chain = ResolverChain([ActiveResolver("s3", adapters.resolver())], Materializer(store))
        try:
            found = await chain.resolve("base", name)
            weights = await asyncio.to_thread(Path(found.lora_request.lora_path, WEIGHTS).read_bytes)
            found.release()
            return weights
        finally:
            await chain.close()

    return asyncio.run(resolve())


def test_an_adapter_of_the_bucket_lies_in_the_store(adapters: Adapters, store: DiskStore) -> None:
    assert weights_of(adapters, store) == b"weights"


def test_a_name_that_the_bucket_does_not_have_is_not_found(adapters: Adapters, store: DiskStore) -> None:
    with pytest.raises(AdapterNotFound):
        weights_of(adapters, store, "nobody")


def test_a_throttled_bucket_is_asked_again_by_the_core_alone(adapters: Adapters, store: DiskStore) -> None:
    adapters.proxy.spoil("GET", WEIGHTS, faulty_s3.answered(503, "SlowDown"))
    with pytest.raises(ResolverFailed, match="503 SlowDown") as failure:
        weights_of(adapters, store)
    assert_shows_no_secret(failure.value)
    downloads = [call for call in adapters.proxy.calls if call.endswith(WEIGHTS) and call.startswith("GET")]
    assert len(downloads) == 1 + retrying.MAX_RETRIES


def test_a_forbidden_bucket_is_asked_once(adapters: Adapters, store: DiskStore) -> None:
    adapters.proxy.spoil("GET", "adapter_config.json", faulty_s3.answered(403, "AccessDenied"))
    with pytest.raises(ResolverFailed, match="403 AccessDenied"):
        weights_of(adapters, store)
    assert len(adapters.proxy.calls) == 1


@pytest.mark.parametrize(("spoilt", "message"), [(b"weight", "has 6 bytes instead of 7"), (b"wEights", "has sha256")])
def test_other_bytes_than_located_are_refused_even_if_the_answer_agrees_with_itself(
    adapters: Adapters, store: DiskStore, spoilt: bytes, message: str
) -> None:
    adapters.put_with_sha256(f"adapters/team/sql/{WEIGHTS}", b"weights")
    adapters.proxy.spoil("GET", WEIGHTS, faulty_s3.with_headers(x_amz_checksum_sha256=None))
    adapters.proxy.spoil("GET", WEIGHTS, faulty_s3.with_body(lambda _: spoilt))
    with pytest.raises(ResolverFailed, match=message):
        weights_of(adapters, store)


def test_an_adapter_that_is_replaced_while_it_is_fetched_is_fetched_anew(adapters: Adapters, store: DiskStore) -> None:
    def replace_weights(answer: Answer) -> Answer:
        adapters.put(f"adapters/team/sql/{WEIGHTS}", b"another")
        return answer

    adapters.proxy.spoil("HEAD", WEIGHTS, replace_weights)
    assert weights_of(adapters, store) == b"another"
