"""Chat messages as templates read them: plain text, whatever form the caller gave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loramux.errors import RequestInvalid


def plain_messages(messages: Sequence[object]) -> list[dict[str, Any]]:
    """Join the text parts of each message's content; raises RequestInvalid for what is no message or no text."""
    return [_plain(message) for message in messages]


def _plain(message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        kind = type(message).__name__
        raise RequestInvalid(f"a message must be an object with 'role' and 'content', got {kind}", param="messages")
    if "content" not in message:
        return dict(message)  # for the template to accept or refuse
    return {**message, "content": _text(message["content"])}


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise RequestInvalid(
            f"the content of a message must be text or a list of text parts, got {type(content).__name__}",
            param="messages",
        )
    return "\n".join(_part(part) for part in content)


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RequestInvalid(f"a content part must be of type 'text', got {kind!r}; only text is served", param="messages")
