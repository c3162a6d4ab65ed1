"""Under which names adapters may know the base model."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramux.model.base_names import base_names


def test_a_hub_id_is_its_own_name() -> None:
    assert base_names(["smol"], "org/SmolLM2-135M") == ("smol", "org/SmolLM2-135M")


@pytest.mark.parametrize("model", [".", "./", "../SmolLM2-135M", "../current"])
def test_a_folder_has_its_real_name_however_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    (tmp_path / "SmolLM2-135M").mkdir()
    (tmp_path / "current").symlink_to("SmolLM2-135M")
    monkeypatch.chdir(tmp_path / "SmolLM2-135M")
    assert base_names([model], model) == (model, str(tmp_path / "SmolLM2-135M"))


@pytest.mark.parametrize(
    "ending",
    [
        ".Q4_1",
        "-Q4_K_M",
        "-q8_0",
        ".f16",
        "-BF16",
        "-F32",
        "-fp16",
        "-IQ2_XXS",
        "-UD-Q4_K_XL",
        ".i1-IQ3_M",
        "-TQ1_0",
        "",
    ],
)
def test_a_gguf_file_has_the_models_name_without_its_quantisation(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"SmolLM2-135M-Instruct{ending}.gguf"
    file.touch()
    assert "SmolLM2-135M-Instruct" in base_names([str(file)], str(file))


@pytest.mark.parametrize("stem", ["Qwen3-0.6B", "Qwen2.5-1.5B-Instruct", "phi-2", "gpt2", "Llama-3.2-1B", "Q8"])
def test_a_name_that_only_looks_like_a_quantisation_is_kept_whole(tmp_path: Path, stem: str) -> None:
    file = tmp_path / f"{stem}.gguf"
    file.touch()
    assert base_names(["served"], str(file)) == ("served", str(file), stem)


def test_the_name_in_a_gguf_file_counts_with_spaces_and_with_dashes(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    names = base_names(["served"], str(file), gguf_name="Meta Llama 3.1 8B Instruct")
    assert names[3:] == ("Meta Llama 3.1 8B Instruct", "Meta-Llama-3.1-8B-Instruct")


def test_the_folder_around_a_gguf_file_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    file = tmp_path / "gpt2" / "model.gguf"
    file.touch()
    assert base_names(["served"], str(file)) == ("served", str(file), "model")
