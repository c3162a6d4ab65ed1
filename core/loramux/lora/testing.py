"""ResolverContract: a pytest class that every plugin's tests inherit; it checks what the server relies on.

A remote resolver inherits RemoteResolverContract, which asks `locate` and adds what `download` promises. Needs pytest,
and nothing else of ours does: import it from tests only.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

from loramux.errors import ResolverFailed
from loramux.lora.remote import RemoteAdapter, RemoteFile, RemoteLoRAResolver
from loramux.lora.request import LoRARequest
from loramux.lora.resolver import LoRAResolver
from loramux.lora.testing_audit import blocking_calls, touched_paths

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


Found = LoRARequest | RemoteAdapter


class _Contract:
    """What is asked of every resolver, local or remote."""

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

    def test_declines_an_unknown_name(self, resolver: LoRAResolver) -> None:
        """None, or FileNotFoundError: so that the next resolver is asked."""
        found = asyncio.run(_run(resolver, _ask(resolver, UNKNOWN_NAME)))
        assert found is None, f"{UNKNOWN_NAME!r} must be declined, got {found}"

    @pytest.mark.parametrize("pattern", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
    def test_declines_a_hostile_name_and_touches_nothing_outside(
        self, resolver: LoRAResolver, known_name: str, outside: Path, pattern: str
    ) -> None:
        """The server filters names first; a resolver does not rely on it."""
        name = pattern.replace("{outside}", str(outside).lstrip("/")).replace("{known}", known_name)
        with touched_paths() as touched:
            found = asyncio.run(_run(resolver, _ask(resolver, name)))
        assert found is None, f"{name!r} must be declined, got {found}"
        leaks = [path for path in touched if path.startswith(str(outside))]
        assert not leaks, f"{name!r} led outside: {leaks}"

    def test_concurrent_calls_get_equal_answers(self, resolver: LoRAResolver, known_name: str) -> None:
        """Calls overlap on the resolver's loop."""

        async def ask_often() -> list[Found | None]:
            return await asyncio.gather(*(_ask(resolver, known_name) for _ in range(16)))

        answers = asyncio.run(_run(resolver, ask_often()))
        places = {_place(found) for found in answers}
        assert len(places) == 1 and None not in places, f"16 calls at once gave {places}"

    def test_a_cancelled_call_leaves_the_resolver_usable(self, resolver: LoRAResolver, known_name: str) -> None:
        """A caller may leave at any moment."""

        async def cancel_then_ask() -> Found | None:
            for steps in range(4):
                await _cancel_after(steps, _ask(resolver, known_name))
            return await _ask(resolver, known_name)

        answer = asyncio.run(_run(resolver, cancel_then_ask()))
        assert answer is not None, f"{known_name!r} is not answered after a cancelled call"

    def test_a_deadline_ends_a_call_at_once(self, resolver: LoRAResolver, known_name: str) -> None:
        """Cancellation is neither swallowed nor outlived: no task of the resolver's goes on."""

        async def cancel_and_look() -> tuple[int, int]:
            swallowed = 0
            others = len(asyncio.all_tasks())
            for steps in range(1, 8):
                call = await _cancel_after(steps, _ask(resolver, known_name))
                swallowed += not call.cancelled() and call.exception() is not None
            for _ in range(100):
                await asyncio.sleep(0)
            return swallowed, len(asyncio.all_tasks()) - others

        swallowed, num_left = asyncio.run(_run(resolver, cancel_and_look(), warm_up=known_name))
        assert swallowed == 0, "a cancelled call must end with CancelledError, not with an error of its own"
        assert num_left <= 0, f"{num_left} tasks of the resolver go on after their calls were cancelled"

    def test_never_blocks_its_event_loop(self, resolver: LoRAResolver, known_name: str) -> None:
        """Files, sleeping and connecting belong into a thread or behind an await."""

        async def ask_watched() -> list[str]:
            with blocking_calls() as watch:
                await _ask(resolver, known_name)
            return watch.calls

        calls = asyncio.run(_run(resolver, ask_watched(), warm_up=known_name))
        assert not calls, f"these calls block the event loop, run them in a thread: {calls}"


class ResolverContract(_Contract):
    """Inherit this as `TestContract`, and give the fixtures `resolver` and `known_name`."""

    def test_answers_a_known_name_with_that_name_and_a_local_folder(
        self, resolver: LoRAResolver, known_name: str
    ) -> None:
        """The server trusts neither; a resolver that breaks this is shut out at its first answer."""
        found = asyncio.run(_run(resolver, _ask(resolver, known_name)))
        assert isinstance(found, LoRARequest), f"{known_name!r} must be known, got {found}"
        assert found.lora_name == known_name, f"asked for {known_name!r}, got {found.lora_name!r}"
        assert Path(found.lora_path).is_dir(), f"{found.lora_path} must be a local folder"


class RemoteResolverContract(_Contract):
    """Inherit this as `TestContract`, and give the fixtures `resolver`, `known_name` and `known_files`."""

    @pytest.fixture
    def known_files(self) -> Mapping[str, bytes]:
        """Return both files of `known_name`, by file name."""
        raise NotImplementedError("override the fixture `known_files`")

    @pytest.fixture
    def known_defaults(self) -> Mapping[str, bytes]:
        """Return what else lies beside `known_name`, by file name; nothing unless overridden."""
        return {}

    def test_locates_both_files_of_a_known_name(
        self, resolver: RemoteLoRAResolver, known_name: str, known_files: Mapping[str, bytes]
    ) -> None:
        """Names, exact sizes, digests where there are any, and a revision that stays until a file changes."""

        async def locate_twice() -> list[RemoteAdapter | None]:
            return [await resolver.locate(BASE_MODEL_NAME, known_name) for _ in range(2)]

        found, again = asyncio.run(_run(resolver, locate_twice()))
        assert found is not None, f"{known_name!r} must be known"
        assert again is not None and again.revision == found.revision, "the revision changed, but no file did"
        assert found.revision and found.root, f"revision and root must not be empty: {found}"
        assert {file.name: file.nbytes for file in found.files} == {n: len(b) for n, b in known_files.items()}
        for file in found.files:
            assert file.sha256 in (None, hashlib.sha256(known_files[file.name]).hexdigest()), f"{file.name}: {file}"

    def test_downloads_exactly_the_bytes_of_each_file(
        self, resolver: RemoteLoRAResolver, known_name: str, known_files: Mapping[str, bytes], tmp_path: Path
    ) -> None:
        """The file is written where the core says, and nothing else is."""

        async def download_all() -> None:
            found = await resolver.locate(BASE_MODEL_NAME, known_name)
            assert found is not None
            for file in found.files:
                await resolver.download(file, tmp_path / file.name)

        asyncio.run(_run(resolver, download_all()))
        written = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert written.keys() == known_files.keys(), f"wrote {sorted(written)} instead of {sorted(known_files)}"
        assert written == dict(known_files), "the bytes are not those of the source"

    def test_locates_what_else_the_adapter_brings(
        self, resolver: RemoteLoRAResolver, known_name: str, known_defaults: Mapping[str, bytes], tmp_path: Path
    ) -> None:
        """A chat template or generation defaults, each as it is; nothing where there is none."""

        async def download_defaults() -> list[RemoteFile]:
            found = await resolver.locate(BASE_MODEL_NAME, known_name)
            assert found is not None
            files = list(await resolver.locate_defaults(found))
            for file in files:
                await resolver.download(file, tmp_path / file.name)
            return files

        files = asyncio.run(_run(resolver, download_defaults()))
        assert {file.name: file.nbytes for file in files} == {n: len(b) for n, b in known_defaults.items()}
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict(known_defaults)

    def test_a_cancelled_download_can_be_done_again(
        self, resolver: RemoteLoRAResolver, known_name: str, known_files: Mapping[str, bytes], tmp_path: Path
    ) -> None:
        """Whatever a cancelled one left in its folder is the core's to remove; the next one gets a new folder."""

        async def cancel_then_download() -> None:
            found = await resolver.locate(BASE_MODEL_NAME, known_name)
            assert found is not None
            for steps in range(6):
                folder = tmp_path / f"cancelled-{steps}"
                folder.mkdir()
                await _cancel_after(steps, resolver.download(found.weights, folder / found.weights.name))
            await resolver.download(found.weights, tmp_path / "whole")

        asyncio.run(_run(resolver, cancel_then_download()))
        (expected,) = (content for name, content in known_files.items() if name.endswith(".safetensors"))
        assert (tmp_path / "whole").read_bytes() == expected

    def test_a_download_to_where_nothing_can_be_written_is_an_error(
        self, resolver: RemoteLoRAResolver, known_name: str, tmp_path: Path
    ) -> None:
        """A full disk or a missing folder must not look like success."""

        async def download_into_nothing() -> None:
            found = await resolver.locate(BASE_MODEL_NAME, known_name)
            assert found is not None
            await resolver.download(found.weights, tmp_path / "missing" / found.weights.name)

        with pytest.raises((OSError, ResolverFailed)):
            asyncio.run(_run(resolver, download_into_nothing()))


T = TypeVar("T")


async def _run(resolver: LoRAResolver, work: Coroutine[Any, Any, T], *, warm_up: str | None = None) -> T:
    """Do the work on one loop and close the resolver there; a call that warms up imports and connects first."""
    try:
        if warm_up is not None:
            await _ask(resolver, warm_up)
        return await work
    finally:
        await resolver.aclose()


async def _cancel_after(steps: int, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
    call = asyncio.create_task(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})
    return call


async def _ask(resolver: LoRAResolver, name: str) -> Found | None:
    try:
        if isinstance(resolver, RemoteLoRAResolver):
            return await resolver.locate(BASE_MODEL_NAME, name)
        return await resolver.resolve_lora(BASE_MODEL_NAME, name)
    except FileNotFoundError:
        return None


def _place(found: Found | None) -> tuple[str, str] | None:
    match found:
        case LoRARequest():
            return found.lora_name, found.lora_path
        case RemoteAdapter():
            return found.root, found.revision
        case None:
            return None
