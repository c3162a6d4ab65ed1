"""LoRARequest: which adapter a request wants, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass

from loramux.errors import RequestInvalid


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """Name one adapter.

    `lora_int_id` is a positive integer, one per adapter; what a resolver puts there is ignored, because the server
    gives ids itself. `lora_path` is a local folder with `adapter_config.json` and `adapter_model.safetensors`.
    `base_model_name` is the parent to show in `/v1/models`. `revision` is what the source calls this version.
    `allowed_root` is set by the core alone (what a resolver puts there is overwritten): the folder's files are opened
    from there, one path segment at a time, and no symlink below it is followed. So is `digest`: the files are refused
    unless this is their content.
    Raises RequestInvalid for an empty name, an empty path or an id below 1.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str
    base_model_name: str | None = None
    revision: str | None = None
    allowed_root: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if not self.lora_name:
            raise RequestInvalid("lora_name must not be empty", param="lora_name")
        if isinstance(self.lora_int_id, bool) or not isinstance(self.lora_int_id, int) or self.lora_int_id < 1:
            raise RequestInvalid(
                f"lora_int_id must be an integer of at least 1, got {self.lora_int_id!r}", param="lora_int_id"
            )
        if not self.lora_path:
            raise RequestInvalid(f"lora_path of adapter {self.lora_name!r} must not be empty", param="lora_path")
