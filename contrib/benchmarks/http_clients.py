"""The clients of `http_overhead.py`: idle connections, and streams that start at a line on standard input.

The first line of input is JSON: `port`, `num_idle`, and `bodies`, one completion request for each stream.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any


async def main() -> None:
    """Open all connections; for every line of input stream once on each active one and print how many tokens came."""
    lines = asyncio.StreamReader(limit=2**26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    settings = json.loads(await lines.readline())
    requests = [_request(body) for body in settings["bodies"]]
    idle = [await asyncio.open_connection("127.0.0.1", settings["port"]) for _ in range(settings["num_idle"])]
    active = [await asyncio.open_connection("127.0.0.1", settings["port"]) for _ in requests]
    while await lines.readline():
        streams = zip(active, requests, strict=True)
        counts = await asyncio.gather(*(stream(*connection, request) for connection, request in streams))
        sys.stdout.write(f"{sum(counts)}\n")
        sys.stdout.flush()
    for _, writer in [*idle, *active]:
        writer.close()


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Ask for one answer, read it to its end, and return how many tokens the server counted."""
    writer.write(request)
    answer = await reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    _, _, usage = answer.rpartition(b'"completion_tokens":')
    return int(usage.split(b",", 1)[0].split(b"}", 1)[0])


def _request(body: Mapping[str, Any]) -> bytes:
    sent = json.dumps(body).encode()
    fields = ("Host: localhost", "Content-Type: application/json", f"Content-Length: {len(sent)}")
    return "\r\n".join(("POST /v1/completions HTTP/1.1", *fields, "", "")).encode() + sent


if __name__ == "__main__":
    asyncio.run(main())
