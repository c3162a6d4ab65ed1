"""ResolverContract fails for the plugins it is there to catch, and says which promise they break."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loramux.lora.request import LoRARequest
from loramux.lora.testing import ResolverContract
from plugin_cases import TableResolver

CHECK = ResolverContract()


class OtherName(TableResolver):
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        return LoRARequest("other", 1, self.folders["known"])


class JoinsPaths(TableResolver):
    """The classic hole: the name is joined to the root and opened."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        (Path(self.folders["known"]) / lora_name / "adapter_config.json").open().close()
        return LoRARequest(lora_name, 1, lora_name)


class BreaksWhenOverlapped(TableResolver):
    is_busy = False

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        if self.is_busy:
            return None
        self.is_busy = True
        await asyncio.sleep(0)
        self.is_busy = False
        return await super().resolve_lora(base_model_name, lora_name)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    return {"known": str(tmp_path)}


def test_another_name_is_caught(folders: dict[str, str]) -> None:
    with pytest.raises(AssertionError, match="asked for 'known', got 'other'"):
        CHECK.test_answers_a_known_name_with_that_name_and_a_local_folder(OtherName(folders), "known")


def test_an_answer_to_an_unknown_name_is_caught(folders: dict[str, str]) -> None:
    with pytest.raises(AssertionError, match="must be declined"):
        CHECK.test_declines_an_unknown_name(OtherName(folders))


def test_a_file_opened_outside_is_caught_even_when_the_answer_is_none(folders: dict[str, str], tmp_path: Path) -> None:
    class OpensThenDeclines(JoinsPaths):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            await super().resolve_lora(base_model_name, lora_name)
            return None

    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "adapter_config.json").touch()
    with pytest.raises(AssertionError, match=r"adapter_config\.json"):
        CHECK.test_declines_a_hostile_name_and_touches_nothing_outside(
            OpensThenDeclines(folders), "known", outside, "/{outside}"
        )


def test_state_shared_by_overlapping_calls_is_caught(folders: dict[str, str]) -> None:
    with pytest.raises(AssertionError, match="16 calls at once gave"):
        CHECK.test_concurrent_calls_get_equal_answers(BreaksWhenOverlapped(folders), "known")


def test_a_resolver_that_a_cancelled_call_leaves_broken_is_caught(folders: dict[str, str]) -> None:
    with pytest.raises(AssertionError, match="not answered after a cancelled call"):
        CHECK.test_a_cancelled_call_leaves_the_resolver_usable(BreaksWhenOverlapped(folders), "known")


def test_a_file_opened_on_the_event_loop_is_caught(folders: dict[str, str], tmp_path: Path) -> None:
    class OpensOnTheLoop(TableResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            (tmp_path / "index.json").open("w").close()
            return await super().resolve_lora(base_model_name, lora_name)

    with pytest.raises(AssertionError, match=r"block the event loop.*index\.json"):
        CHECK.test_never_blocks_its_event_loop(OpensOnTheLoop(folders), "known")


def test_a_task_that_outlives_its_cancelled_call_is_caught(folders: dict[str, str]) -> None:
    class LeavesTasks(TableResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            if self.asked:
                await asyncio.shield(asyncio.create_task(asyncio.Event().wait()))
            return await super().resolve_lora(base_model_name, lora_name)

    with pytest.raises(AssertionError, match="go on after their calls were cancelled"):
        CHECK.test_a_deadline_ends_a_call_at_once(LeavesTasks(folders), "known")
