"""`--lora-modules`: the two ways to write an item, name=path or a JSON object, and the folders that items name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from loramux.errors import ConfigInvalid
from loramux.lora.remote import CONFIG_NAME
from loramux.server.startup.config import LoRAModule

_FIELDS = ("name", "path", "base_model_name")


def parse_lora_modules(items: Sequence[str]) -> list[LoRAModule]:
    """Read the items in their order, either form, mixed; empty ones are skipped. Raises ConfigInvalid."""
    return [_parse_pair(item) if _is_pair(item) else _parse_json(item) for item in items if item]


def refuse_missing_folders(modules: Sequence[LoRAModule]) -> None:
    """Find before the model is loaded what cannot be an adapter at all; raises ConfigInvalid."""
    for module in modules:
        try:
            folder = Path(module.path).expanduser()
            if not folder.is_dir():
                raise refused_module(module, "there is no such folder")
            if not (folder / CONFIG_NAME).is_file():
                raise refused_module(module, f"the folder has no {CONFIG_NAME}")
        except (OSError, ValueError, RuntimeError) as exc:  # too long, a NUL, not permitted, an unknown home
            raise refused_module(module, f"the folder cannot be read: {exc}") from exc


def refused_module(module: LoRAModule, reason: str) -> ConfigInvalid:
    """Say why the server cannot start with this module, in the words of the command line."""
    return ConfigInvalid(f"--lora-modules {module.name}={module.path}: {reason}")


def _is_pair(item: str) -> bool:
    return "=" in item and "," not in item and not item.lstrip().startswith("{")


def _parse_pair(item: str) -> LoRAModule:
    name, _, path = item.partition("=")
    if not name or not path:
        raise ConfigInvalid(f"--lora-modules {item!r} must look like name=path")
    return LoRAModule(name, path)


def _parse_json(item: str) -> LoRAModule:
    try:
        value = json.loads(item)
    except ValueError as exc:
        raise ConfigInvalid(
            f"Invalid JSON format for --lora-modules: {item}; write name=path or a JSON object"
        ) from exc
    is_complete = isinstance(value, dict) and {"name", "path"} <= set(value) <= set(_FIELDS)
    if not is_complete or not all(isinstance(value[key], str) and value[key] for key in ("name", "path")):
        raise ConfigInvalid(
            f"Invalid fields for --lora-modules: {item}; give 'name', 'path' and, if you like, 'base_model_name'"
        )
    base_model_name = value.get("base_model_name")
    if base_model_name is not None and not isinstance(base_model_name, str):
        raise ConfigInvalid(f"Invalid fields for --lora-modules: {item}; 'base_model_name' must be a string")
    return LoRAModule(value["name"], value["path"], base_model_name)
