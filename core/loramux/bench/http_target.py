"""HTTPTarget: answers streamed from a server that speaks OpenAI's /v1/completions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from loramux.bench.driver import Answered
from loramux.bench.server_address import ServerAddress
from loramux.bench.workload import BenchRequest
from loramux.errors import ConfigInvalid, EngineOverloaded, RequestFailed

LARGEST_SHOWN_ERROR = 200
_REFUSALS = (429, 503)


class HTTPTarget:
    """Owns no server, only connections to it: as many as there are requests at once, kept open."""

    def __init__(self, session: aiohttp.ClientSession, address: ServerAddress, base_model: str) -> None:
        self._session = session
        self._address = address
        self.base_model = base_model

    @classmethod
    @asynccontextmanager
    async def connect(cls, address: ServerAddress) -> AsyncIterator[HTTPTarget]:
        """Find the base model's name, and keep connections to the end. Raises ConfigInvalid where nobody answers."""
        headers = {} if address.api_key is None else {"Authorization": f"Bearer {address.api_key}"}
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=address.timeout_seconds),
        ) as session:
            yield cls(session, address, address.model or await _first_model(session, address))

    async def answer(self, request: BenchRequest, on_piece: Callable[[], None]) -> Answered:
        body = {
            "model": request.adapter or self.base_model,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            async with self._session.post(f"{self._address.api}/completions", json=body) as response:
                if response.status != 200:
                    raise _failure(response.status, await response.text())
                return await _read_stream(response.content, on_piece)
        except (aiohttp.ClientError, HttpProcessingError, OSError) as exc:  # a timeout is an OSError
            raise RequestFailed(f"{type(exc).__name__}: {exc}") from exc

    def counting(self) -> Callable[[], Mapping[str, object]]:
        """Nothing is counted here; a server counts for itself."""
        return dict


async def _read_stream(lines: aiohttp.StreamReader, on_piece: Callable[[], None]) -> Answered:
    """Read events up to `[DONE]`; raises RequestFailed for an error event, a torn stream, or one without usage."""
    usage: dict[str, Any] | None = None
    async for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        event = _parsed(data)
        if event.get("error") is not None:
            raise RequestFailed(_shown_error(data.decode(errors="replace")))
        if any(choice.get("text") for choice in event.get("choices") or ()):
            on_piece()
        usage = event.get("usage") or usage
    else:
        raise RequestFailed("the stream ended without [DONE]")
    if not isinstance(usage, dict) or not isinstance(usage.get("completion_tokens"), int):
        raise RequestFailed("the server does not count tokens: no usage in the stream (stream_options.include_usage)")
    return Answered(usage.get("prompt_tokens"), usage["completion_tokens"])


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError as exc:
        raise RequestFailed(f"an event is no JSON: {_shown_error(data.decode(errors='replace'))}") from exc
    if not isinstance(event, dict):
        raise RequestFailed(f"an event is no object: {_shown_error(data.decode(errors='replace'))}")
    return event


def _failure(status: int, text: str) -> EngineOverloaded | RequestFailed:
    message = f"{status} {_shown_error(text)}"
    return EngineOverloaded(message) if status in _REFUSALS else RequestFailed(message)


def _shown_error(text: str) -> str:
    """Take the message out of an error body, or else the body itself, not too much of it."""
    try:
        document = json.loads(text)
        text = document["error"]["message"]
    except (ValueError, KeyError, TypeError):
        pass
    return text if len(text) <= LARGEST_SHOWN_ERROR else text[:LARGEST_SHOWN_ERROR] + "…"


async def _first_model(session: aiohttp.ClientSession, address: ServerAddress) -> str:
    url = f"{address.api}/models"
    try:
        async with session.get(url) as response:
            text = await response.text()
            if response.status != 200:
                answer = f"{response.status} {_shown_error(text)}"
                raise ConfigInvalid(f"--base-url {address.base_url}: {url} answers {answer}")
            name = json.loads(text)["data"][0]["id"]
    except (aiohttp.ClientError, OSError) as exc:
        raise ConfigInvalid(f"--base-url {address.base_url}: nobody answers: {exc}") from exc
    except (ValueError, LookupError, TypeError) as exc:
        raise ConfigInvalid(f"--base-url {address.base_url}: {url} lists no model; --model names one") from exc
    return str(name)
