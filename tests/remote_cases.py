"""A remote source in memory, which does to its files what real ones do: change, break off, lie, hang."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loramux.lora.remote import CONFIG_NAME, WEIGHTS_NAME, RemoteAdapter, RemoteFile, RemoteLoRAResolver


@dataclass
class Upload:
    """One adapter at the source; `revision` is what the source calls this version."""

    weights: bytes
    config: bytes = b"{}"
    revision: str = "v1"
    defaults: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Shelf(RemoteLoRAResolver):
    """Counts what is asked of it. `sent` may change the bytes on their way; each of `failures` is raised once."""

    uploads: dict[str, Upload] = field(default_factory=dict)
    gives_digests: bool = True
    num_located: int = 0
    downloads: list[str] = field(default_factory=list)
    sent: Callable[[bytes], bytes] = lambda content: content
    failures: list[Exception] = field(default_factory=list)
    outage: Exception | None = None
    hangs: bool = False
    is_sending: asyncio.Event = field(default_factory=asyncio.Event)

    async def locate(self, base_model_name: str, lora_name: str) -> RemoteAdapter | None:
        self.num_located += 1
        if self.outage is not None:
            raise self.outage
        upload = self.uploads.get(lora_name)
        if upload is None:
            return None
        config, weights = (
            RemoteFile(name, len(content), hashlib.sha256(content).hexdigest() if self.gives_digests else None, content)
            for name, content in ((CONFIG_NAME, upload.config), (WEIGHTS_NAME, upload.weights))
        )
        return RemoteAdapter(upload.revision, f"shelf://{lora_name}", config, weights)

    async def locate_defaults(self, adapter: RemoteAdapter) -> list[RemoteFile]:
        upload = self.uploads[adapter.root.removeprefix("shelf://")]
        return [RemoteFile(name, len(content), handle=content) for name, content in upload.defaults.items()]

    async def download(self, file: RemoteFile, destination: Path) -> None:
        self.downloads.append(file.name)
        self.is_sending.set()
        if self.failures:
            raise self.failures.pop(0)
        assert isinstance(file.handle, bytes)
        await asyncio.to_thread(destination.write_bytes, self.sent(file.handle))
        if self.hangs:
            await asyncio.Event().wait()
