"""RemoteLoRAResolver: what a plugin writes to serve adapters from a remote store: where the files are, and their bytes.

The core does the rest, once for all sources: deadlines, retries, staging, limits, hashing, and publishing whole
adapters only. So a remote resolver owns no folder, retries nothing and checks nothing that it downloads.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from loramux.errors import PluginError
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
ADAPTER_FILE_NAMES = (CONFIG_NAME, WEIGHTS_NAME)

CHAT_TEMPLATE_NAME = "chat_template.jinja"
GENERATION_CONFIG_NAME = "generation_config.json"
DEFAULTS_FILE_NAMES = (CHAT_TEMPLATE_NAME, GENERATION_CONFIG_NAME)
"""What an adapter may bring besides, and what is read only where the operator allows it."""

MAX_DEFAULTS_NBYTES = 128 * 1024
"""Most that one of them may have."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as the source's metadata tells of it, before a byte is fetched.

    `name` is one of ADAPTER_FILE_NAMES or DEFAULTS_FILE_NAMES. `nbytes` is its exact size. `sha256` is the hex digest
    where the source knows it, and None where it does not: an ETag is no digest. `handle` is whatever `download` needs
    to fetch exactly this version of the file (a key and its version, a URL); it is passed back as it is and never
    shown.
    """

    name: str
    nbytes: int
    sha256: str | None = None
    handle: object = None


@dataclass(frozen=True, slots=True)
class RemoteAdapter:
    """One version of an adapter at its source.

    `revision` changes whenever one of the two files does: a commit, or the versions or ETags of both. `root` is the
    place as `/v1/models` shows it, such as `s3://bucket/prefix`, without secrets.
    """

    revision: str
    root: str
    config: RemoteFile
    weights: RemoteFile

    @property
    def files(self) -> tuple[RemoteFile, RemoteFile]:
        """Both files, the small one first."""
        return self.config, self.weights

    @property
    def nbytes(self) -> int:
        """What both files take."""
        return self.config.nbytes + self.weights.nbytes


class RemoteLoRAResolver(LoRAResolver):
    """A source of which files must be fetched. Write `locate` and `download`; both run on the resolver's own loop.

    Both may be cancelled at any await, and leave nothing behind then. Let a client's own retries be off: the core
    retries ResolverFailed(retryable=True), TimeoutError and ConnectionError, and nothing else.
    """

    @abstractmethod
    async def locate(self, base_model_name: str, lora_name: str) -> RemoteAdapter | None:
        """Ask for metadata only: which two files, how large, which version; None means "not mine".

        Raises ResolverFailed when the source cannot say ("denied by the bucket" and "out of order" are faults, not
        misses), ResolverDenied when it must not.
        """

    @abstractmethod
    async def download(self, file: RemoteFile, destination: Path) -> None:
        """Write exactly the bytes of a located file to `destination`, which does not exist yet.

        Raises SourceChanged when that version of the file is no longer there: the core locates it again. What is
        written is measured while it grows and checked when it is done, by size and by digest.
        """

    async def locate_defaults(self, adapter: RemoteAdapter) -> Sequence[RemoteFile]:  # noqa: ARG002
        """Ask which of DEFAULTS_FILE_NAMES lie beside a located adapter, in the same version where there is one.

        Only called where the operator lets adapters bring a chat template and generation defaults of their own. A
        source that has none needs no such method.
        """
        return ()

    @final
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:  # noqa: ARG002
        """Not for remote sources: the core calls `locate` and `download`."""
        raise PluginError(f"{type(self).__name__} is a remote resolver: call locate and download")


def split_revision(lora_name: str) -> tuple[str, str | None]:
    """Take `name@revision` apart at the last `@`; the revision is None when there is none."""
    name, at, revision = lora_name.rpartition("@")
    return (name, revision) if at and name and revision else (lora_name, None)
