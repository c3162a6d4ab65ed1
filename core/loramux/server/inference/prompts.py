"""From what a client wrote to the tokens of a prompt, off the event loop, and whether they fit the context."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from loramux.errors import ContextLengthExceeded, RequestInvalid
from loramux.server.inference.chat_protocol import TokenizedChat
from loramux.server.inference.protocol import LARGEST_TOKEN_ID, MAX_PROMPTS, CompletionRequest, GenerationRequest
from loramux.server.state import Server

MAX_CHARACTERS_PER_TOKEN = 16
"""Of the context: how much text may come that is to be cut, or is only counted."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt; `text` is what an echo gives back, and empty for a chat."""

    token_ids: list[int]
    text: str = ""


def parse_prompts(value: object) -> list[str] | list[list[int]]:
    """Read the `prompt` of a completion, one or many; raises RequestInvalid for anything else."""
    if value is None or value in ("", []):
        raise _bad_prompt("'prompt' must be provided and non-empty.", code="missing_required_parameter")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _bad_prompt("'prompt' must be a string, a list of token ids, or a list of either.")
    if _is_token_ids(value):
        return [value]
    if len(value) > MAX_PROMPTS:
        raise _bad_prompt(f"'prompt' may hold at most {MAX_PROMPTS} prompts.", code="value_above_maximum")
    texts = [item for item in value if isinstance(item, str) and item]
    if len(texts) == len(value):
        return texts
    token_lists = [item for item in value if isinstance(item, list) and item and _is_token_ids(item)]
    if len(token_lists) == len(value):
        return token_lists
    raise _bad_prompt("'prompt' must hold non-empty strings, or non-empty lists of token ids of at least 0.")


async def completion_prompts(
    server: Server, body: CompletionRequest, values: Sequence[str] | Sequence[list[int]], *, num_answer: int
) -> list[Prompt]:
    """Encode the prompts of a completion; raises RequestInvalid for one that is empty."""
    cut = Cut.of(body, server.max_model_len - num_answer)
    encode = partial(
        _encode, server, values, add_special_tokens=body.add_special_tokens is not False, echo=bool(body.echo), cut=cut
    )
    prompts = await asyncio.to_thread(encode)
    if not all(prompt.token_ids for prompt in prompts):
        raise RequestInvalid("'prompt' must not be empty.", param="prompt")
    return prompts


async def chat_prompt(
    server: Server, body: TokenizedChat, *, chat_template: str | None, context: int | None
) -> list[int]:
    """Render and encode the messages with the adapter's own chat template, or the model's.

    Text that can never fit into `context` tokens is refused before it is encoded.
    """
    _check_permission(server, body)
    arguments = body.template_arguments()
    if chat_template is not None:
        arguments = {"chat_template": chat_template, **arguments}
    render = partial(
        _render,
        server,
        [message.for_template() for message in body.messages],
        arguments,
        tools=body.offered_tools,
        add_special_tokens=bool(body.add_special_tokens),
        context=context,
    )
    return await asyncio.to_thread(render)


@dataclass(frozen=True, slots=True)
class Cut:
    """How a prompt that is too long is shortened: to its last tokens, or its first; not at all without a number."""

    num_tokens: int | None = None
    keeps_first: bool = False

    @classmethod
    def of(cls, body: GenerationRequest, most: int) -> Cut:
        """Read what the client wants; -1 stands for as many as leave room for the answer."""
        asked = body.truncate_prompt_tokens
        return cls(max(most, 1) if asked == -1 else asked, body.truncation_side == "right")

    def apply(self, token_ids: list[int]) -> list[int]:
        """Shorten a prompt."""
        if self.num_tokens is None:
            return token_ids
        return token_ids[: self.num_tokens] if self.keeps_first else token_ids[-self.num_tokens :]


def check_text_length(text: str, *, max_model_len: int, param: str) -> None:
    """Refuse, before it costs anything, a text that is to be cut or counted and is many times what could be used."""
    most = MAX_CHARACTERS_PER_TOKEN * max_model_len
    if len(text) > most:
        message = f"'{param}' has {len(text)} characters; at most {most} are encoded at a time."
        raise RequestInvalid(message, param=param, code="value_above_maximum")


def check_fits(prompts: Sequence[Prompt], *, max_tokens: int | None, max_model_len: int, param: str) -> None:
    """Refuse, by name and numbers, what can never fit into the context."""
    for prompt in prompts:
        num_prompt, num_answer = len(prompt.token_ids), 1 if max_tokens is None else max_tokens
        if num_prompt + num_answer > max_model_len:
            raise ContextLengthExceeded.of_tokens(
                max_model_len, num_prompt=num_prompt, num_answer=num_answer, param=param
            )


def _is_token_ids(value: list[object]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= LARGEST_TOKEN_ID for item in value)


def _bad_prompt(message: str, *, code: str = "invalid_value") -> RequestInvalid:
    return RequestInvalid(message, param="prompt", code=code)


def _encode(
    server: Server,
    values: Sequence[str] | Sequence[list[int]],
    *,
    add_special_tokens: bool,
    echo: bool,
    cut: Cut,
) -> list[Prompt]:
    tokenizer = server.tokenizer
    prompts = []
    for value in values:
        if isinstance(value, str):
            context = server.max_model_len if cut.num_tokens is None else None
            if context is None:
                check_text_length(value, max_model_len=server.max_model_len, param="prompt")
            whole = tokenizer.encode(value, add_special_tokens, context=context)
        else:
            whole = value
        token_ids = cut.apply(whole)
        is_as_sent = isinstance(value, str) and len(token_ids) == len(whole)
        text = value if is_as_sent else tokenizer.decode(token_ids, skip_special_tokens=False) if echo else ""
        prompts.append(Prompt(token_ids, str(text)))
    return prompts


def _check_permission(server: Server, body: TokenizedChat) -> None:
    """Refuse a client's own template: it is a program, and may show the operator's prompt or waste time."""
    if server.trust_request_chat_template:
        return
    for name in ("chat_template", "chat_template_kwargs"):
        if getattr(body, name):
            raise RequestInvalid(
                f"'{name}' is accepted only where the operator allows it (--trust-request-chat-template).",
                param=name,
                code="unsupported_parameter",
            )


def _render(
    server: Server,
    messages: list[dict[str, object]],
    arguments: dict[str, object],
    *,
    tools: list[dict[str, object]],
    add_special_tokens: bool,
    context: int | None,
) -> list[int]:
    tokenizer = server.tokenizer
    text = tokenizer.render_chat(messages, **({**arguments, "tools": tools} if tools else arguments))
    if tools and text == tokenizer.render_chat(messages, **arguments):
        raise RequestInvalid(
            "This model's chat template takes no tools: the model would never hear of them.",
            param="tools",
            code="unsupported_parameter",
        )
    if context is None:
        check_text_length(text, max_model_len=server.max_model_len, param="messages")
    return tokenizer.encode(text, add_special_tokens, context=context)
