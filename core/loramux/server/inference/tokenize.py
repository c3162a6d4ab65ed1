"""POST /tokenize and /detokenize: what a prompt comes to, without answering it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, RootModel

from loramux.errors import RequestInvalid
from loramux.server.body import checked, read_body, read_object
from loramux.server.inference.adapter_defaults import defaults_of
from loramux.server.inference.chat_protocol import TokenizedChat
from loramux.server.inference.json_body import respond_elsewhere
from loramux.server.inference.model_choice import choose_model
from loramux.server.inference.prompts import MAX_CHARACTERS_PER_TOKEN, chat_prompt, check_text_length
from loramux.server.inference.protocol import TokenId
from loramux.server.state import SERVER, Server


class TokenizeRequest(BaseModel):
    """The body of POST /tokenize with a text."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(TokenizedChat):
    """The body of POST /tokenize with messages."""

    model: str | None = None
    return_token_strs: bool | None = None


class TokenizeBody(RootModel[TokenizeChatRequest | TokenizeRequest]):
    """Either of the two."""


class DetokenizeRequest(BaseModel):
    """The body of POST /detokenize."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


async def tokenize(request: web.Request) -> web.Response:
    """Answer POST /tokenize: the tokens that the same text or messages would be answered from."""
    server = request.app[SERVER]
    value = await read_object(request)
    body: TokenizeChatRequest | TokenizeRequest
    has_messages = value.get("messages") is not None
    body = checked(value, TokenizeChatRequest) if has_messages else checked(value, TokenizeRequest)
    async with server.in_flight.admit(), choose_model(request, body.model) as model:
        if isinstance(body, TokenizeRequest):
            check_text_length(body.prompt, max_model_len=server.max_model_len, param="prompt")
            adds_special_tokens = body.add_special_tokens is not False
            token_ids = await asyncio.to_thread(server.tokenizer.encode, body.prompt, adds_special_tokens)
        else:
            defaults = await defaults_of(model.served, server.adapter_defaults)
            token_ids = await chat_prompt(server, body, chat_template=defaults.chat_template, context=None)
        return await respond_elsewhere(partial(_tokenized, server, token_ids, named=bool(body.return_token_strs)))


def _tokenized(server: Server, token_ids: list[int], *, named: bool) -> dict[str, object]:
    return {
        "count": len(token_ids),
        "max_model_len": server.max_model_len,
        "tokens": token_ids,
        "token_strs": [server.vocabulary.show(token_id).text for token_id in token_ids] if named else None,
    }


async def detokenize(request: web.Request) -> web.Response:
    """Answer POST /detokenize: the text of these tokens, special ones included."""
    server = request.app[SERVER]
    body = await read_body(request, DetokenizeRequest)
    most = MAX_CHARACTERS_PER_TOKEN * server.max_model_len
    if len(body.tokens) > most:
        message = f"'tokens' has {len(body.tokens)} ids; at most {most} are decoded at a time."
        raise RequestInvalid(message, param="tokens", code="value_above_maximum")
    unknown = next((place for place, token in enumerate(body.tokens) if token >= server.engine.vocab_size), None)
    if unknown is not None:
        message = f"'tokens' must be ids from 0 to {server.engine.vocab_size - 1}, got {body.tokens[unknown]}."
        raise RequestInvalid(message, param=f"tokens.{unknown}")
    async with server.in_flight.admit(), choose_model(request, body.model):
        text = await asyncio.to_thread(server.tokenizer.decode, body.tokens, False)
        return web.json_response({"prompt": text})
