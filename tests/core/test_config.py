"""A wrong start-up setting is refused by its name, its value and what is accepted, before a weight is read."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from loramux import EngineArgs
from loramux.config import BaseMatch
from loramux.errors import ConfigInvalid
from loramux.llm_options import LLMOptions


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("model", "", "a non-empty string"),
        ("model", None, "a non-empty string"),
        ("tokenizer", "", "a non-empty string"),
        *[
            ("served_model_name", value, "a list of non-empty strings")
            for value in ("", ["a", ""], {"a"}, ("a", 1), None)
        ],
        *[("enable_lora", value, "True or False") for value in ("False", 1, None)],
        ("enable_prefix_caching", 0, "True or False"),
        ("max_loras", 0, "an integer of at least 1"),
        ("max_loras", 1.5, "an integer of at least 1"),
        ("max_loras", True, "an integer of at least 1"),
        ("max_lora_rank", 0, "an integer of at least 1 and at most 512"),
        ("max_lora_rank", 513, "an integer of at least 1 and at most 512"),
        ("max_cpu_loras", 0, "an integer of at least 1"),
        ("max_model_len", 0, "an integer of at least 1"),
        ("max_num_seqs", 0, "an integer of at least 1"),
        ("max_num_batched_tokens", "512", "an integer of at least 1"),
        ("seed", -1, "an integer of at least 0"),
        ("kv_cache_memory_bytes", -5, "an integer of at least 1"),
        ("block_size", 257, "an integer of at least 1 and at most 256"),
        ("slot_wait_limit", 0, "an integer of at least 1"),
        ("memory_utilization", 0, "in (0, 1]"),
        ("memory_utilization", 1.01, "in (0, 1]"),
        ("memory_utilization", float("nan"), "in (0, 1]"),
        ("memory_utilization", "x", "a number in (0, 1]"),
        ("memory_utilization", True, "a number in (0, 1]"),
        ("memory_utilization", None, "a number in (0, 1]"),
        ("dtype", "float64", "one of auto, float32, bfloat16, float16"),
        ("kv_cache_dtype", "fp8", "one of auto, float16, bfloat16"),
        ("quantization", "int3", "None or one of int8"),
        ("device", "tpu", "one of auto, cpu, cuda"),
        ("kernels", "numba", "one of auto, torch, triton"),
        ("base_match", "maybe", "one of exact, basename, off"),
    ],
)
def test_a_wrong_value_is_refused_by_name_value_and_range(name: str, value: object, accepted: str) -> None:
    options = {"model": "m", name: value}

    with pytest.raises(ConfigInvalid, match=f"{name} must be .*{re.escape(accepted)}.*{re.escape(repr(value))}"):
        EngineArgs(**options)  # type: ignore[arg-type]


def test_every_running_sequence_must_get_a_token_in_each_step() -> None:
    with pytest.raises(ConfigInvalid, match=r"max_num_batched_tokens \(8\) must be at least max_num_seqs \(9\)"):
        EngineArgs(model="m", max_num_seqs=9, max_num_batched_tokens=8)


def test_host_memory_must_hold_what_the_slots_hold() -> None:
    with pytest.raises(ConfigInvalid, match=r"max_cpu_loras \(3\) must be >= max_loras \(4\)"):
        EngineArgs(model="m", max_loras=4, max_cpu_loras=3)


@pytest.mark.parametrize(
    ("max_loras", "max_cpu_loras", "expected"), [(8, None, 64), (100, None, 100), (4, 4, 4), (4, 9, 9)]
)
def test_host_memory_holds_at_least_what_the_slots_hold(
    max_loras: int, max_cpu_loras: int | None, expected: int
) -> None:
    assert EngineArgs(model="m", max_loras=max_loras, max_cpu_loras=max_cpu_loras).host_loras == expected


def test_the_base_answers_to_its_served_names_or_else_its_own() -> None:
    assert EngineArgs(model="m").base_model_names == ("m",)
    assert EngineArgs(model="m", served_model_name=("a", "b")).base_model_names == ("a", "b")


@pytest.mark.parametrize(("given", "names"), [("abc", ("abc",)), (["a", "b"], ("a", "b")), ([], ("m",))])
def test_one_served_name_may_be_given_bare(given: str | list[str], names: tuple[str, ...]) -> None:
    assert EngineArgs(model="m", served_model_name=given).base_model_names == names


@pytest.mark.parametrize("value", ["exact", "basename", "off"])
def test_every_way_to_match_the_base_is_taken(value: BaseMatch) -> None:
    assert EngineArgs(model="m", base_match=value).base_match == value


def test_llm_takes_every_engine_argument() -> None:
    assert set(get_type_hints(LLMOptions)) | {"model"} == {field.name for field in fields(EngineArgs)}


def test_a_path_object_is_taken_as_text() -> None:
    arguments = EngineArgs(model=Path("/models/llama"), tokenizer=Path("/models/other"))  # type: ignore[arg-type]

    assert (arguments.model, arguments.tokenizer) == ("/models/llama", "/models/other")
