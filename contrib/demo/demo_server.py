"""Owns the demo's server process: started from this interpreter, waited for, and stopped whatever happens."""

import asyncio
import contextlib
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from base_model import MODEL_NAME

ADAPTERS = Path(__file__).parent / "adapters"
START_SECONDS = 120.0
STOP_SECONDS = 30.0
LOG_TAIL_LINES = 30


class ServerError(RuntimeError):
    """The server did not start, answer or stop; the message ends with the last lines of its log."""


def serve_command(model: Path, port: int) -> list[str]:
    """Return the command line of the server, with the same interpreter as ours."""
    return [
        *(sys.executable, "-m", "loramux.cli", "serve", str(model)),
        *("--served-model-name", MODEL_NAME),
        *("--enable-lora", "--max-lora-rank", "64"),
        *("--lora-resolvers", "filesystem", "--resolver-option", f"filesystem.root={ADAPTERS}"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


@asynccontextmanager
async def running_server(model: Path) -> AsyncIterator[str]:
    """Run a server on a free port and yield its address; raises `ServerError` with the tail of its log."""
    with tempfile.TemporaryFile() as log:
        port = _free_port()
        process = await asyncio.create_subprocess_exec(*serve_command(model, port), stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            await _wait_until_healthy(url, process)
            yield url
            await _stop(process)
        except Exception as exc:
            log.seek(0)
            tail = log.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
            raise ServerError("\n".join([str(exc) or repr(exc), "The server's last lines:", *tail])) from exc
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


async def _wait_until_healthy(url: str, process: asyncio.subprocess.Process) -> None:
    timeout = aiohttp.ClientTimeout(total=5)
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while asyncio.get_running_loop().time() < deadline:
            if process.returncode is not None:
                raise ServerError(f"the server ended while starting, exit status {process.returncode}")
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise ServerError(f"the server was not healthy after {START_SECONDS:.0f} s")


async def _stop(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGINT)
    try:
        status = await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        raise ServerError(f"the server did not stop within {STOP_SECONDS:.0f} s of SIGINT") from None
    if status not in (0, 128 + signal.SIGINT, -signal.SIGINT):
        raise ServerError(f"the server stopped with exit status {status}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
