"""Chat messages as templates read them: plain text, whatever form the caller gave it."""

from __future__ import annotations

import json
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
    plain = dict(message)
    if isinstance(plain.get("tool_calls"), list):
        plain["tool_calls"] = [_tool_call(call) for call in plain["tool_calls"]]
    if "content" not in plain:
        return plain  # for the template to accept or refuse
    return {**plain, "content": _text(plain["content"])}


def _tool_call(call: object) -> object:
    """Give the template the arguments of an earlier call as an object, which the API carries as JSON text."""
    if not isinstance(call, Mapping) or not isinstance(function := call.get("function"), Mapping):
        return call
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(arguments)}}
    except ValueError:
        return call  # some templates take any text


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
