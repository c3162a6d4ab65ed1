"""A header that was checked is not checked again, and nothing but its very bytes, and those of its config, is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux import LLMEngine, LoRARequest
from loramux.adapters import known_headers, peft_checkpoint
from loramux.adapters.known_headers import KnownHeaders
from loramux.engine.adapter_loader import AdapterLoader
from tiny_engines import engine_args

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the headers that were parsed."""
    sizes: list[int] = []
    parse = peft_checkpoint.parse_header

    def count(header: bytes, **options: Any) -> Any:
        sizes.append(len(header))
        return parse(header, **options)

    monkeypatch.setattr(peft_checkpoint, "parse_header", count)
    return sizes


def test_two_adapters_of_one_recipe_are_checked_once_and_each_has_its_own_numbers(
    llama_base: Any, adapter: Any, parsed: list[int]
) -> None:
    known = KnownHeaders()
    adapter.change_tensors(len)  # saved by other means than PEFT's, as it will be below
    first = llama_base.read(adapter.path, known_headers=known)
    adapter.change_tensors(lambda tensors: [tensor.mul_(3) for tensor in tensors.values()])
    second = llama_base.read(adapter.path, known_headers=known)

    assert len(parsed) == 1
    assert first.digest != second.digest
    for module, ours in second.modules.items():
        assert torch.equal(ours.a, 3 * first.modules[module].a)
        assert torch.equal(ours.b, 3 * first.modules[module].b)
    alone = llama_base.read(adapter.path)
    assert (second.digest, list(second.modules)) == (alone.digest, list(alone.modules))


def test_a_loader_checks_the_header_of_a_recipe_once(
    tiny_llama: Path, make_adapter: Callable[..., Path], parsed: list[int]
) -> None:
    engine = LLMEngine(engine_args(tiny_llama))
    loader = AdapterLoader(engine.runner, engine.args)
    adapters = [
        loader.load(LoRARequest(f"twin-{seed}", seed, str(make_adapter(f"twin-{seed}", seed=seed)))) for seed in (1, 2)
    ]
    assert len(parsed) == 1
    assert adapters[0].digest != adapters[1].digest
    engine.shutdown()


def test_another_config_is_another_scaling(llama_base: Any, adapter: Any, parsed: list[int]) -> None:
    known = KnownHeaders()
    llama_base.read(adapter.path, known_headers=known)
    changed = llama_base.read(adapter.change_config(lora_alpha=20), known_headers=known)
    assert changed.modules[Q_PROJ].scaling == 5.0
    assert len(parsed) == 2


def test_what_was_refused_is_refused_again(llama_base: Any, adapter: Any, parsed: list[int]) -> None:
    known = KnownHeaders()
    adapter.change_config(r=5)
    refusals = [llama_base.refusal(adapter.path, known_headers=known).reason for _time in range(2)]
    assert refusals[0] == refusals[1]
    assert "config says r=5" in refusals[0]
    assert len(parsed) == 2


def test_numbers_are_checked_whether_or_not_the_header_is_known(llama_base: Any, adapter: Any) -> None:
    known = KnownHeaders()
    llama_base.read(adapter.path, known_headers=known)
    adapter.change_tensors(lambda tensors: next(iter(tensors.values())).fill_(float("inf")))
    assert "not finite" in llama_base.refusal(adapter.path, known_headers=known).reason


@pytest.mark.parametrize("change", [-4, 4])
def test_a_known_header_before_too_few_or_too_many_bytes_is_refused(llama_base: Any, adapter: Any, change: int) -> None:
    known = KnownHeaders()
    llama_base.read(adapter.path, known_headers=known)
    content = adapter.weights_file.read_bytes()
    adapter.weights_file.write_bytes(content[:change] if change < 0 else content + bytes(change))
    assert "truncated or padded" in llama_base.refusal(adapter.path, known_headers=known).reason


def test_the_headers_asked_for_last_are_kept_and_large_ones_are_not(
    llama_base: Any, adapter: Any, monkeypatch: pytest.MonkeyPatch, parsed: list[int]
) -> None:
    monkeypatch.setattr(known_headers, "MAX_HEADERS", 2)
    known = KnownHeaders()

    def read(alpha: int) -> None:
        llama_base.read(adapter.change_config(lora_alpha=alpha), known_headers=known)

    for alpha in (1, 2, 1, 3, 1, 3):
        read(alpha)
    assert len(parsed) == 3
    read(2)
    assert len(parsed) == 4
    monkeypatch.setattr(known_headers, "MAX_NBYTES", 100)
    read(7)
    read(7)
    assert len(parsed) == 6
