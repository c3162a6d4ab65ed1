import json
import struct
from pathlib import Path

import pytest

from base_model import HUB_NAME
from demo_data import TASKS

ADAPTERS = Path(__file__).parents[1] / "adapters"


def test_there_is_one_adapter_per_task():
    assert {folder.name for folder in ADAPTERS.iterdir() if folder.is_dir()} == set(TASKS)


def test_ranks_and_target_modules_differ():
    configs = [config_of(task) for task in TASKS]
    assert len({config["r"] for config in configs}) == len(TASKS)
    assert len({tuple(config["target_modules"]) for config in configs}) == len(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_an_adapter_is_small_and_in_half_precision(task):
    weights = ADAPTERS / task / "adapter_model.safetensors"
    assert weights.stat().st_size <= 2_000_000
    assert dtypes_of(weights) == {"F16"}


@pytest.mark.parametrize("task", TASKS)
def test_the_config_names_the_base_by_its_public_name(task):
    config = config_of(task)
    assert config["base_model_name_or_path"] == HUB_NAME
    assert config["peft_type"] == "LORA"
    assert config["lora_dropout"] == 0.0


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_holds_the_two_files_alone(task):
    assert {path.name for path in (ADAPTERS / task).iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def config_of(task):
    return json.loads((ADAPTERS / task / "adapter_config.json").read_text())


def dtypes_of(weights):
    data = weights.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
