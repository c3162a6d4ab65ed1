"""ResolverContract: a pytest class that every plugin's tests inherit; it checks what the server relies on.

Needs pytest, and nothing else of ours does: import it from tests only.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver

BASE_MODEL_NAME = "base"
UNKNOWN_NAME = "nobody/has-this-adapter"
HOSTILE_NAMES = (
    "",
    ".",
    "..",
    "../{outside}",
    "a/../../{outside}",
    "../../../../../../../../../../../../../../../../{outside}",
    "{known}/../../../../../../../../../../../../../../../../{outside}",
    "/{outside}",
    "file:///{outside}",
    "//{outside}",
    "~",
    "{known}/",
    "{known}//",
    "./{known}",
    "{known}/.",
    "{known}\x00",
    "..\\..\\{outside}",
    "%2e%2e/{outside}",
    "\ud800",
    "a" * 5000,
    "a/" * 2500 + "a",
)


class ResolverContract:
    """Inherit this as `TestContract`, and give the fixtures `resolver` and `known_name`."""

    @pytest.fixture
    def resolver(self) -> LoRAResolver:
        """Return the resolver under test, configured so that it knows `known_name`."""
        raise NotImplementedError("override the fixture `resolver`")

    @pytest.fixture
    def known_name(self) -> str:
        """Return the name of an adapter that the resolver knows."""
        raise NotImplementedError("override the fixture `known_name`")

    @pytest.fixture
    def outside(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Return an adapter folder that no answer may come from."""
        folder = tmp_path_factory.mktemp("outside")
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(b"")
        return folder

    def test_answers_a_known_name_with_that_name_and_a_local_folder(
        self, resolver: LoRAResolver, known_name: str
    ) -> None:
        """The server trusts neither; a resolver that breaks this is shut out at its first answer."""
        found = asyncio.run(_ask(resolver, known_name))
        assert found is not None, f"{known_name!r} must be known"
        assert found.lora_name == known_name, f"asked for {known_name!r}, got {found.lora_name!r}"
        assert Path(found.lora_path).is_dir(), f"{found.lora_path} must be a local folder"

    def test_declines_an_unknown_name(self, resolver: LoRAResolver) -> None:
        """None, or FileNotFoundError: so that the next resolver is asked."""
        found = asyncio.run(_ask(resolver, UNKNOWN_NAME))
        assert found is None, f"{UNKNOWN_NAME!r} must be declined, got {found}"

    @pytest.mark.parametrize("pattern", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
    def test_declines_a_hostile_name_and_touches_nothing_outside(
        self, resolver: LoRAResolver, known_name: str, outside: Path, pattern: str
    ) -> None:
        """The server filters names first; a resolver does not rely on it."""
        name = pattern.replace("{outside}", str(outside).lstrip("/")).replace("{known}", known_name)
        with _touched_paths() as touched:
            found = asyncio.run(_ask(resolver, name))
        assert found is None, f"{name!r} must be declined, got {found}"
        leaks = [path for path in touched if path.startswith(str(outside))]
        assert not leaks, f"{name!r} led outside: {leaks}"

    def test_concurrent_calls_get_equal_answers(self, resolver: LoRAResolver, known_name: str) -> None:
        """Calls overlap on the resolver's loop."""

        async def ask_often() -> set[LoRARequest | None]:
            return set(await asyncio.gather(*(_ask(resolver, known_name) for _ in range(16))))

        answers = asyncio.run(ask_often())
        places = {None if found is None else (found.lora_name, found.lora_path) for found in answers}
        assert len(places) == 1 and None not in places, f"16 calls at once gave {places}"

    def test_a_cancelled_call_leaves_the_resolver_usable(self, resolver: LoRAResolver, known_name: str) -> None:
        """A caller may leave at any moment."""

        async def cancel_then_ask() -> LoRARequest | None:
            for steps in range(4):
                call = asyncio.create_task(_ask(resolver, known_name))
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait({call})
            return await _ask(resolver, known_name)

        assert asyncio.run(cancel_then_ask()) is not None, f"{known_name!r} is not answered after a cancelled call"


async def _ask(resolver: LoRAResolver, name: str) -> LoRARequest | None:
    try:
        return await resolver.resolve_lora(BASE_MODEL_NAME, name)
    except FileNotFoundError:
        return None


_TOUCHING = frozenset(
    {"open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.symlink", "os.link", "os.chmod"}
)
_recorders: list[list[str]] = []


@contextmanager
def _touched_paths() -> Iterator[list[str]]:
    """Record every path that any thread opens, lists or changes, with symlinks followed."""
    _install_audit_hook()
    touched: list[str] = []
    _recorders.append(touched)
    try:
        yield touched
    finally:
        _recorders.remove(touched)
    touched[:] = [os.path.realpath(path) for path in touched]


@functools.cache
def _install_audit_hook() -> None:
    sys.addaudithook(_record)  # it cannot be removed again, so there is one, which is idle between the tests


def _record(event: str, arguments: tuple[object, ...]) -> None:
    if _recorders and event in _TOUCHING and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.fsdecode(arguments[0])
        if "\0" not in path and path.isprintable():  # what cannot be a path is not touched either
            for touched in _recorders:
                touched.append(path)
