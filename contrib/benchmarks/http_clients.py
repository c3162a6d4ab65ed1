"""The clients of `http_overhead.py`: idle connections, and streams that start at a line on standard input."""

from __future__ import annotations

import asyncio
import json
import sys


async def main(port: int, num_idle: int, num_active: int, num_tokens: int) -> None:
    """Open all connections; for every line of input stream once on each active one and print how many tokens came."""
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(num_idle)]
    active = [await asyncio.open_connection("127.0.0.1", port) for _ in range(num_active)]
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    body = json.dumps(
        {
            "prompt": "hello",
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    fields = ("Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}")
    request = "\r\n".join(("POST /v1/completions HTTP/1.1", *fields, "", "")).encode() + body
    while await lines.readline():
        counts = await asyncio.gather(*(stream(reader, writer, request) for reader, writer in active))
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


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
