"""KeyTemplate: from an operator's URL and a client's name to one exact key below the URL's prefix, or to none."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from loramux.errors import ConfigInvalid
from loramux.lora.remote import split_revision

_URL = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9.-]+)/(?P<folder>[^{}]*(?:\{\w+\}[^{}]*)+)")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,254}")


class KeyTemplate:
    """`s3://bucket/prefix/{lora_name}`, with `{base_model_name}` and `{revision}` where they are wanted."""

    def __init__(self, url: str) -> None:
        """Raise ConfigInvalid for anything else."""
        self.url = url.rstrip("/")
        found = _URL.fullmatch(self.url)
        placeholders = set(_PLACEHOLDER.findall(self.url))
        unknown = placeholders - {"base_model_name", "lora_name", "revision"}
        if found is None or "lora_name" not in placeholders or unknown or not _is_plain(found["folder"]):
            raise ConfigInvalid(
                f"resolver option s3.url={url!r} must look like s3://BUCKET/PREFIX/{{lora_name}}, without empty, "
                "'.' or '..' segments; {base_model_name} and {revision} may be in it, too"
            )
        self.bucket = found["bucket"]
        self._folder = found["folder"]
        self._has_revision = "revision" in placeholders

    def folder(self, base_model_name: str, lora_name: str) -> str | None:
        """Return the key that both files lie under; None for a name that has no place here.

        With `{revision}` in the URL a name is `name@revision`, and has no place without one; otherwise an `@` is a
        character like any other. A base that is a path goes in by its last segment, any other as it is.
        """
        if not _NAME.fullmatch(lora_name):
            return None
        name, revision = split_revision(lora_name) if self._has_revision else (lora_name, "")
        if revision is None:
            return None
        is_path = base_model_name.startswith(("/", ".", "~"))
        values = {
            "base_model_name": PurePosixPath(base_model_name).name if is_path else base_model_name,
            "lora_name": name,
            "revision": revision,
        }
        if not all(_is_plain(value) for placeholder, value in values.items() if f"{{{placeholder}}}" in self._folder):
            return None
        return _PLACEHOLDER.sub(lambda found: values[found[1]], self._folder)


def _is_plain(key: str) -> bool:
    """S3 itself gives `..` no meaning, but a gateway before it may."""
    return not {"", ".", ".."}.intersection(key.split("/"))
