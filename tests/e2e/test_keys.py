"""A server with a keys file, as an operator starts it."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import aiohttp

from served import serving


def table(name: str, **fields: str) -> str:
    """A `[[keys]]` table for the key of the same name."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    lines = [f'id = "{name}"', f'sha256 = "{digest}"', *(f"{field} = {value}" for field, value in fields.items())]
    return "\n".join(["[[keys]]", *lines, ""])


async def test_keys_hosts_and_limits_are_in_force_and_a_changed_file_is_noticed(
    tiny_llama: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    await asyncio.to_thread(
        keys.write_text, table("team", requests_per_minute="3") + table("watcher", scopes='["metrics"]')
    )
    arguments = ("--keys-file", str(keys), "--kv-cache-memory-bytes", "8MiB", "--allowed-hosts", "models.lan")
    with serving(str(tiny_llama), *arguments, log=tmp_path / "log") as served:
        async with aiohttp.ClientSession(served.url) as client:

            async def get(path: str, key: str | None = None, host: str | None = None) -> int:
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                async with client.get(path, headers=headers | ({"Host": host} if host else {})) as reply:
                    return reply.status

            assert [await get("/health"), await get("/version"), await get("/v1/models", "other")] == [200, 401, 401]
            hosts = ("models.lan", "evil.example")
            assert [await get("/version", "watcher", host) for host in hosts] == [200, 403]
            assert [await get("/v1/models", key) for key in ("team", "watcher")] == [200, 403]
            assert [await get("/metrics", key) for key in ("team", "watcher")] == [403, 200]
            assert [await get("/v1/models", "team") for _ in range(3)] == [200, 200, 429]

            await asyncio.to_thread(keys.write_text, table("newcomer"))
            async with asyncio.timeout(30):
                while await get("/v1/models", "newcomer") != 200:
                    pass
            assert await get("/metrics", "watcher") == 401
    log = await asyncio.to_thread((tmp_path / "log").read_text)
    assert "can be read or changed by other users: chmod 600" in log
    assert "with an API key" in served.screen
