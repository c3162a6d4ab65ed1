"""The keys file: who may use the server for what, known by the sha256 of their keys, and read again when it changes."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import tomllib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loramux.errors import ConfigInvalid
from loramux.server.access.auth import ApiKey, ApiKeys
from loramux.server.access.name_glob import NameGlob
from loramux.server.access.principal import KeyLimits, Principal, Scope

CHECK_SECONDS = 3.0
"""How soon a change of the file is noticed."""

_PerMinute = Annotated[int, Field(ge=1, le=1_000_000)]
_Glob = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:@/+*-]{1,255}$")]

logger = logging.getLogger(__name__)


class _KeyTable(BaseModel):
    """One `[[keys]]` table."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: list[Scope] = Field(default=["infer"], min_length=1)
    adapters: list[_Glob] | None = Field(default=None, max_length=1000)
    base: bool = True
    requests_per_minute: _PerMinute | None = None
    new_adapters_per_minute: _PerMinute | None = None
    max_concurrent: Annotated[int, Field(ge=1)] | None = None

    def key(self) -> ApiKey:
        """Build the key."""
        principal = Principal(
            id=self.id,
            scopes=frozenset(self.scopes),
            adapters=None if self.adapters is None else tuple(NameGlob(glob) for glob in self.adapters),
            may_use_base=self.base,
            limits=KeyLimits(
                requests_per_minute=self.requests_per_minute,
                new_adapters_per_minute=self.new_adapters_per_minute,
                max_concurrent=self.max_concurrent,
            ),
        )
        return ApiKey(bytes.fromhex(self.sha256), principal)


class _Contents(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    keys: list[_KeyTable] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class KeysFile:
    """A keys file as it was when it was read."""

    path: Path
    content: bytes = field(repr=False)
    keys: tuple[ApiKey, ...] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> KeysFile:
        """Read and check the file; raises ConfigInvalid, which names the key and the field, and repeats no value."""
        try:
            return cls.parse(path, _content(path))
        except OSError as exc:
            raise ConfigInvalid(f"--keys-file {path}: cannot be read: {exc.strerror or exc}") from exc

    @classmethod
    def parse(cls, path: Path, content: bytes) -> KeysFile:
        """Check what the file holds; raises ConfigInvalid."""
        try:
            document = tomllib.loads(content.decode())
        except (ValueError, RecursionError) as exc:  # not TOML, not UTF-8, or nested without end
            raise ConfigInvalid(f"--keys-file {path}: is no TOML: {exc}") from exc
        try:
            tables = _Contents.model_validate(document).keys
        except ValidationError as exc:
            raise ConfigInvalid(f"--keys-file {path}: {_first_error(exc, document)}") from exc
        _check_together(path, tables)
        return cls(path, content, tuple(table.key() for table in tables))

    @property
    def has_admin(self) -> bool:
        """Whether one of the keys may manage adapters."""
        return any("admin" in key.principal.scopes for key in self.keys)

    def is_open_to_others(self) -> bool:
        """Whether other users of this machine may read the file, or change it."""
        mode = self.path.stat().st_mode
        return bool(mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP))


class KeysFileReader:
    """Brings a changed keys file into service; a broken one leaves the keys as they are."""

    def __init__(self, file: KeysFile, keys: ApiKeys) -> None:
        self._path = file.path
        self._seen: bytes | None = file.content
        self._keys = keys

    async def watch(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.check()
            except Exception:  # a server that no longer sees changes would keep keys that were taken back
                logger.exception("keys file cannot be checked, its keys stay as they are path=%s", self._path)

    async def check(self) -> None:
        """Look once; what was wrong with a file is logged once."""
        try:
            content = await asyncio.to_thread(_content, self._path)
        except OSError as exc:
            if self._seen is not None:
                logger.error("keys file cannot be read, its keys stay as they are path=%s: %s", self._path, exc)
            self._seen = None
            return
        if content == self._seen:
            return
        self._seen = content
        try:
            file = await asyncio.to_thread(KeysFile.parse, self._path, content)
        except ConfigInvalid as exc:
            logger.error("keys file is broken, its keys stay as they are: %s", exc)
            return
        self._keys.replace(file.keys)
        logger.info("keys file read again path=%s keys=%d", self._path, len(file.keys))


@asynccontextmanager
async def following(file: KeysFile | None, keys: ApiKeys) -> AsyncIterator[None]:
    """Follow the changes of a keys file, if there is one, until the end."""
    if file is None:
        yield
        return
    task = asyncio.create_task(KeysFileReader(file, keys).watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _content(path: Path) -> bytes:
    """Read a regular file; raises OSError for anything else, such as a pipe, which could keep a thread for ever."""
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _check_together(path: Path, tables: list[_KeyTable]) -> None:
    for name in ("id", "sha256"):
        counts = Counter(getattr(table, name) for table in tables)
        repeated = [table.id for table in tables if counts[getattr(table, name)] > 1]
        if repeated:
            raise ConfigInvalid(f"--keys-file {path}: {name} is the same for more than one key: {', '.join(repeated)}")
    for table in tables:
        if any("***" in glob for glob in table.adapters or ()):
            raise ConfigInvalid(f"--keys-file {path}: key {table.id!r}: adapters: more than two * in a row")
        if "admin" in table.scopes and (table.adapters is not None or not table.base):
            raise ConfigInvalid(
                f"--keys-file {path}: key {table.id!r}: adapters, base: a key with the scope admin manages every "
                "adapter, so these cannot narrow it; leave them out or take another key"
            )


def _first_error(invalid: ValidationError, document: dict[str, object]) -> str:
    """Say which key and field is wrong; never what stands there, which may be a key by mistake."""
    error = invalid.errors(include_url=False, include_context=False, include_input=False)[0]
    match error["loc"]:
        case ("keys", int(position), *path):
            where = f"key {_name_of(document, position)}: {'.'.join(str(part) for part in path)}"
        case path:
            where = ".".join(str(part) for part in path)
    return f"{where}: {error['msg']}"


def _name_of(document: dict[str, object], position: int) -> str:
    """What the operator calls the key: its id, or its number where it has none of a sane form."""
    match document:
        case {"keys": [*tables]} if isinstance(table := tables[position], dict):
            name = table.get("id")
            if isinstance(name, str) and name.isprintable() and len(name) <= 64:
                return repr(name)
    return f"number {position + 1}"
