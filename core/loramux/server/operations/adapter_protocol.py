"""The bodies that operators send about adapters, checked field by field."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class LoadAdapterRequest(BaseModel):
    """The body of POST /v1/load_lora_adapter; without a path the resolvers are asked."""

    model_config = ConfigDict(strict=True, extra="ignore")

    lora_name: str | None = None
    lora_path: str | None = None
    base_model_name: str | None = None
    load_inplace: bool | None = None


class WhichAdapterRequest(BaseModel):
    """The body of POST /v1/unload_lora_adapter, /v1/pin_lora_adapter and /v1/unpin_lora_adapter.

    One field is enough; `id` takes what `/v1/models` shows as such, or the number.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    lora_name: str | None = None
    lora_int_id: int | None = None
    id: str | int | None = None


class MoveAliasRequest(BaseModel):
    """The body of POST /v1/move_lora_alias; `target` null removes the alias.

    With `expected_target` the alias must stand for that now; null means that it must not exist yet.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    alias: Annotated[str, Field(min_length=1)]
    target: str | None
    expected_target: str | None = None
