"""From what a client wrote to the tokens of a prompt, off the event loop, and whether they fit the context."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from loramux.errors import ContextLengthExceeded, RequestInvalid
from loramux.server.protocol import LARGEST_TOKEN_ID, MAX_PROMPTS, ChatCompletionRequest, CompletionRequest
from loramux.server.state import Server


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
    server: Server, body: CompletionRequest, values: Sequence[str] | Sequence[list[int]]
) -> list[Prompt]:
    """Encode the prompts of a completion; raises RequestInvalid for one that is empty."""
    encode = partial(_encode, server, values, body.add_special_tokens is not False, bool(body.echo))
    prompts = await asyncio.to_thread(encode)
    if not all(prompt.token_ids for prompt in prompts):
        raise RequestInvalid("'prompt' must not be empty.", param="prompt")
    return prompts


async def chat_prompt(server: Server, body: ChatCompletionRequest) -> Prompt:
    """Render and encode the messages with the model's chat template."""
    messages = [message.for_template() for message in body.messages]
    add_generation_prompt = body.add_generation_prompt is not False
    render = partial(
        server.tokenizer.apply_chat_template,
        messages,
        context=server.max_model_len,
        add_generation_prompt=add_generation_prompt,
    )
    return Prompt(await asyncio.to_thread(render))


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
    server: Server, values: Sequence[str] | Sequence[list[int]], add_special_tokens: bool, needs_text: bool
) -> list[Prompt]:
    tokenizer = server.tokenizer
    prompts = []
    for value in values:
        if isinstance(value, str):
            token_ids = tokenizer.encode(value, add_special_tokens, context=server.max_model_len)
            prompts.append(Prompt(token_ids, value))
        else:
            prompts.append(Prompt(value, tokenizer.decode(value, skip_special_tokens=False) if needs_text else ""))
    return prompts
