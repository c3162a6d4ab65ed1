"""MlflowLoRAResolver: an adapter is two artifacts of one version of a registered model.

The version is pinned when the adapter is located: an alias that moves afterwards moves neither file.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from loramux.errors import ConfigInvalid, ResolverFailed, SourceChanged
from loramux.lora.remote import (
    CONFIG_NAME,
    DEFAULTS_FILE_NAMES,
    WEIGHTS_NAME,
    RemoteAdapter,
    RemoteFile,
    RemoteLoRAResolver,
    split_revision,
)
from loramux_mlflow.registry import Artifact, ModelVersion, NotInRegistry, Registry

__all__ = ["MlflowLoRAResolver"]

CHUNK_NBYTES = 1 << 20

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,254}")
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")
_SUBFOLDER = re.compile(r"[^/?#]+(/[^/?#]+)*")


class MlflowLoRAResolver(RemoteLoRAResolver):
    """Option `tracking_uri`: the MLflow server; a name is `model@alias` or `model@version`."""

    priority = 35
    option_names = ("tracking_uri", "subfolder", "default_alias")

    def __init__(self, registry: Registry, *, subfolder: str = "peft", default_alias: str | None = None) -> None:
        """Take the registry, the adapter's folder in a model ("": the model itself), and the alias of plain names."""
        self.registry = registry
        self.subfolder = subfolder
        self.default_alias = default_alias

    @classmethod
    def from_config(cls, options: Mapping[str, str]) -> MlflowLoRAResolver | None:
        """Need `tracking_uri`; without it the plugin is not configured, whatever MLflow's own variables say."""
        if not options.get("tracking_uri"):
            return None
        subfolder = options.get("subfolder", "peft").strip("/")
        if subfolder and (not _SUBFOLDER.fullmatch(subfolder) or {".", ".."}.intersection(subfolder.split("/"))):
            raise ConfigInvalid(
                f"resolver option mlflow.subfolder={subfolder!r} must be a folder such as 'peft', or empty"
            )
        alias = options.get("default_alias") or None
        if alias is not None and (not _ALIAS.fullmatch(alias) or alias.isdecimal()):
            raise ConfigInvalid(
                f"resolver option mlflow.default_alias={alias!r} must be letters, digits, '_' and '-', and no version"
            )
        registry = Registry(options["tracking_uri"], os.environ)
        return cls(registry, subfolder=subfolder, default_alias=alias)

    def describe(self) -> str:
        """Show the server, and which folder of a model is looked into."""
        return f"{self.registry.url} ({self.subfolder or 'root'} of a model)"

    async def locate(self, base_model_name: str, lora_name: str) -> RemoteAdapter | None:  # noqa: ARG002
        """Return the adapter of a model version; one without an adapter is somebody else's."""
        try:
            version = await self._find(lora_name)
            if version is None:
                return None
            location = await self.registry.location(version)
            folder = _joined(location, self.subfolder)
            artifacts = {artifact.name: artifact for artifact in await self.registry.artifacts(folder)}
        except NotInRegistry:
            return None
        root = _joined(f"models:/{version.name}/{version.version}", self.subfolder)
        config, weights = (_file(root, folder, artifacts.get(name)) for name in (CONFIG_NAME, WEIGHTS_NAME))
        if config is None:
            return None
        if weights is None:
            message = f"resolver 'mlflow': {root} has {CONFIG_NAME}, but no {WEIGHTS_NAME}"
            raise ResolverFailed(message, retryable=False)
        return RemoteAdapter(_revision(version, folder, config, weights), root, config, weights)

    async def locate_defaults(self, adapter: RemoteAdapter) -> Sequence[RemoteFile]:
        """Return what the version's folder has of them."""
        assert isinstance(adapter.config.handle, str)
        folder = adapter.config.handle.removesuffix(CONFIG_NAME).rstrip("/")
        try:
            artifacts = {artifact.name: artifact for artifact in await self.registry.artifacts(folder)}
        except NotInRegistry as exc:
            raise SourceChanged(f"resolver 'mlflow': {exc} is gone") from exc
        files = (_file(adapter.root, folder, artifacts.get(name)) for name in DEFAULTS_FILE_NAMES)
        return [file for file in files if file is not None]

    async def download(self, file: RemoteFile, destination: Path) -> None:
        """Write the artifact; SourceChanged when it is gone."""
        assert isinstance(file.handle, str)
        try:
            async with self.registry.artifact(file.handle) as content:
                await _write(destination, "xb", b"")
                async for piece in content.iter_chunked(CHUNK_NBYTES):
                    await _write(destination, "ab", piece)
        except NotInRegistry as exc:
            raise SourceChanged(f"resolver 'mlflow': {exc} is gone") from exc

    async def aclose(self) -> None:
        """Close the connections."""
        await self.registry.close()

    async def _find(self, lora_name: str) -> ModelVersion | None:
        model, alias = split_revision(lora_name)
        alias = alias or self.default_alias
        if alias is None or not _MODEL.fullmatch(model) or not _ALIAS.fullmatch(alias):
            return None
        if not alias.isdecimal():
            return await self.registry.version_of_alias(model, alias)
        return await self.registry.version(model, alias) if len(alias) < 10 else None


def _file(root: str, folder: str, artifact: Artifact | None) -> RemoteFile | None:
    if artifact is None or artifact.is_dir:
        return None
    if artifact.nbytes is None:
        raise ResolverFailed(f"resolver 'mlflow': {root}: the size of {artifact.name} is not told", retryable=False)
    return RemoteFile(artifact.name, artifact.nbytes, handle=_joined(folder, artifact.name))


def _joined(*parts: str) -> str:
    return "/".join(filter(None, parts))


def _revision(version: ModelVersion, folder: str, *files: RemoteFile) -> str:
    """Name the version, and by a digest all that tells it from another which once had its number."""
    told = (version.creation_timestamp, folder, *(file.nbytes for file in files))
    digest = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
    return "+".join(filter(None, (version.version, version.run_id, digest)))


async def _write(destination: Path, mode: str, piece: bytes) -> None:
    """Write in a thread, which a cancelled call waits for: nothing is written afterwards, and no file stays open."""
    writing = asyncio.ensure_future(asyncio.to_thread(_write_at_once, destination, mode, piece))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait({writing})
        raise


def _write_at_once(destination: Path, mode: str, piece: bytes) -> None:
    with destination.open(mode) as file:
        file.write(piece)
