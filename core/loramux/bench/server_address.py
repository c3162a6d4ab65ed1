"""ServerAddress: where a server to be measured is, and how to get in."""

from __future__ import annotations

from dataclasses import dataclass

from loramux.errors import ConfigInvalid


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """`model` is the base model's name; None: the first that it lists. `timeout_seconds` is per request."""

    base_url: str
    api_key: str | None = None
    model: str | None = None
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigInvalid(f"--base-url must start with http:// or https://, got {self.base_url!r}")
        if not 0 < self.timeout_seconds <= 86_400:
            raise ConfigInvalid(f"--timeout must be above 0 and at most 86400 seconds, got {self.timeout_seconds:g}")

    @property
    def api(self) -> str:
        """The root of the API, which ends in /v1 whether or not it was given so."""
        return self.base_url.rstrip("/").removesuffix("/v1") + "/v1"
