"""A signal under load: every client is told, the process ends as it should."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import openai
import pytest

from served import Served, serving
from tiny_models import build_model

FOREVER = 30_000  # tokens; far more than fit into the grace period


@pytest.fixture(scope="module")
def endless_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("models") / "endless", max_position_embeddings=2 * FOREVER)


@pytest.fixture
def served(endless_llama: Path, tmp_path: Path) -> Iterator[Served]:
    times = ("--drain-delay", "0.1", "--grace", "0.5")
    with serving(str(endless_llama), *times, "--kv-cache-memory-bytes", "64MiB", log=tmp_path / "log") as served:
        yield served


class Reader(threading.Thread):
    """Reads one stream to whatever end it has."""

    def __init__(self, url: str, model: Path) -> None:
        super().__init__()
        self._url = url
        self._model = model
        self.has_begun = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        with openai.OpenAI(base_url=f"{self._url}/v1", api_key="-", max_retries=0) as client:
            try:
                request = {"model": str(self._model), "prompt": "x", "max_tokens": FOREVER, "stream": True}
                for _ in client.completions.create(**request, extra_body={"ignore_eos": True}):
                    self.has_begun.set()
            except Exception as exc:
                self.error = exc
            finally:
                self.has_begun.set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_ends_every_stream_with_an_error_and_the_process_with_zero(
    served: Served, endless_llama: Path, number: signal.Signals
) -> None:
    readers = [Reader(served.url, endless_llama) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.has_begun.wait()

    served.signal(number)

    assert served.wait() == 0
    for reader in readers:
        reader.join()
        assert isinstance(reader.error, openai.APIError)
        assert "shutting down" in reader.error.message
    log = served.log.read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1].endswith("loramux.server.startup.launch: stopped")


async def test_sigterm_leaves_the_door_open_for_a_while_but_says_so(endless_llama: Path, tmp_path: Path) -> None:
    delay = ("--drain-delay", "3600", "--kv-cache-memory-bytes", "8MiB")
    with serving(str(endless_llama), *delay, log=tmp_path / "log") as served:
        async with aiohttp.ClientSession(served.url) as client:

            async def get(path: str) -> tuple[int, str | None]:
                async with client.get(path) as reply:
                    return reply.status, reply.headers.get("Connection")

            first = await get("/health/ready")
            served.signal(signal.SIGTERM)
            while (ready := await get("/health/ready"))[0] == 200:
                pass
            live = await get("/health/live")
            async with client.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}) as answer:
                answered = (answer.status, answer.headers.get("Connection"))
        served.signal(signal.SIGTERM)

        assert served.wait() == 128 + signal.SIGTERM
    assert (first, ready, live, answered) == ((200, None), (503, "close"), (200, "close"), (200, "close"))


def test_the_second_signal_ends_the_process_at_once(served: Served, endless_llama: Path) -> None:
    reader = Reader(served.url, endless_llama)
    reader.start()
    reader.has_begun.wait()

    served.signal(signal.SIGTERM)
    served.signal(signal.SIGINT)

    assert served.wait() in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    reader.join()
    assert isinstance(reader.error, openai.APIConnectionError | openai.APIError)


def test_an_invalid_static_adapter_keeps_the_server_from_starting(endless_llama: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "adapter_config.json").write_text("{}")
    arguments = (str(endless_llama), "--enable-lora", "--lora-modules", f"sql={tmp_path}")

    with pytest.raises(AssertionError), serving(*arguments, "--kv-cache-memory-bytes", "8MiB", log=log):
        pytest.fail("it started")

    assert "Traceback" not in log.read_text()
    last = log.read_text().splitlines()[-1]
    assert last.startswith(f"loramux serve: error: --lora-modules sql={tmp_path}: ")
