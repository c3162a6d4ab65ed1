"""An engine and a tokenizer that answer at once, in bytes, and fail or wait when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from loramux.adapters.residency import Residency
from loramux.adapters.served_adapter import LoadedAdapter
from loramux.config import StartupSummary
from loramux.errors import AdapterInvalid, LoramuxError, RequestInvalid
from loramux.lora.request import LoRARequest
from loramux.metrics.state import EngineState
from loramux.outputs import CompletionOutput, Logprob, RequestOutput
from loramux.sampling_params import SamplingParams
from loramux.structured_outputs import StructuredOutputsParams


class ByteTokenizer:
    """One token per UTF-8 byte."""

    def encode(self, text: str, add_special_tokens: bool = True, *, context: int | None = None) -> list[int]:
        return ([1] if add_special_tokens else []) + list(text.encode())

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        return bytes(token_id for token_id in token_ids if token_id > 1).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id])

    def render_chat(self, messages: Sequence[Mapping[str, Any]], /, **template_arguments: Any) -> str:
        self.template_arguments = template_arguments
        if messages[-1]["role"] != "user" and not template_arguments.get("continue_final_message"):
            raise RequestInvalid("messages do not fit the model's chat template", param="messages")
        tools = "".join(f"[{tool['function']['name']}]" for tool in template_arguments.get("tools", ()))
        return "\x01" + tools + "".join(f"<{message['role']}>{message['content']}" for message in messages)


class FakeEngine:
    """Answers `MODEL>PROMPT`, one token per output; `MODEL` is the adapter's name or `base`.

    `fail_after` tokens `failure` is raised; `report_after` tokens an output carries `failure`. While `gate` is closed
    nobody gets past `hold_after` tokens.
    """

    def __init__(self) -> None:
        self.is_running = True
        self.vocab_size = 256
        self.seconds_in_step = 0.0
        self.num_waiting = 0
        self.failure: Exception = LoramuxError("not set")
        self.fail_after: int | None = None
        self.report_after: int | None = None
        self.hold_after: int | None = None
        self.gate = asyncio.Event()
        self.reached_gate = asyncio.Event()
        self.left = asyncio.Event()
        self.num_running = 0
        self.num_aborted = 0
        self.seen: list[tuple[list[int], SamplingParams, str, LoRARequest | None]] = []
        self.tenants: list[str | None] = []
        self.cache_salts: list[str | None] = []
        self.loaded: dict[int, LoRARequest] = {}
        self.refusals: dict[str, AdapterInvalid] = {}
        self.in_slots: set[int] = set()
        self.pinned: set[int] = set()
        self.max_pinned = 2

    async def add_lora(self, request: LoRARequest) -> bool:
        if request.lora_name in self.refusals:
            raise self.refusals[request.lora_name]
        self.loaded[request.lora_int_id] = request
        return True

    async def load_adapter(self, request: LoRARequest) -> LoadedAdapter:
        await self.add_lora(request)
        return LoadedAdapter(f"digest of {request.lora_path}", 1, 1)

    async def check_structured_outputs(self, params: StructuredOutputsParams | None) -> None:
        if params is not None and params.regex == "(":
            raise RequestInvalid("no regex", param="structured_outputs")

    async def remove_lora(self, lora_int_id: int) -> bool:
        self.pinned.discard(lora_int_id)
        return self.loaded.pop(lora_int_id, None) is not None

    @property
    def summary(self) -> StartupSummary:
        return StartupSummary("llama", "cpu", "float32", "float32", None, 100, 1000, 1 << 20, 4, 2, 64, 4)

    def state(self) -> EngineState:
        return EngineState(num_running=self.num_running, num_waiting=self.num_waiting, max_num_seqs=4)

    def residency(self, lora_int_id: int) -> Residency | None:
        if lora_int_id not in self.loaded:
            return None
        return Residency("slot" if lora_int_id in self.in_slots else "host", lora_int_id in self.pinned)

    def residencies(self) -> dict[int, Residency]:
        return {lora_int_id: residency for lora_int_id in self.loaded if (residency := self.residency(lora_int_id))}

    async def pin_adapter(self, request: LoRARequest, *, instead_of: int | None = None) -> None:
        self.loaded[request.lora_int_id] = request
        self.pinned -= {instead_of}
        if len(self.pinned | {request.lora_int_id}) > self.max_pinned:
            raise RequestInvalid("no place would be left", param="lora_int_id", code="adapter_pin_refused")
        self.pinned.add(request.lora_int_id)

    async def unpin_lora(self, lora_int_id: int) -> bool:
        was_pinned = lora_int_id in self.pinned
        self.pinned.discard(lora_int_id)
        return was_pinned

    async def generate(
        self,
        prompt: list[int],
        sampling_params: SamplingParams,
        request_id: str,
        lora_request: LoRARequest | None = None,
        *,
        tenant: str | None = None,
        cache_salt: str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        self.tenants.append(tenant)
        self.cache_salts.append(cache_salt)
        self.seen.append((prompt, sampling_params, request_id, lora_request))
        self.num_running += 1
        is_done = False
        try:
            reply = f"{'base' if lora_request is None else lora_request.lora_name}>".encode() + bytes(prompt[1:])
            length = min(len(reply), sampling_params.max_tokens or len(reply))
            for num_tokens in range(1, length + 1):
                await self._act(num_tokens - 1)
                is_last = num_tokens == length
                answers = [
                    _answer(index, reply[:num_tokens], sampling_params, lora_request, is_last, length < len(reply))
                    for index in range(sampling_params.n)
                ]
                yield RequestOutput(
                    request_id,
                    None,
                    prompt,
                    _prompt_logprobs(prompt, sampling_params),
                    answers,
                    is_last,
                    lora_request,
                    num_cached_tokens=1,
                    error=self.failure if self.report_after == num_tokens else None,
                )
            is_done = True
        finally:
            self.num_running -= 1
            self.num_aborted += not is_done
            if self.num_running == 0:
                self.left.set()

    async def _act(self, num_tokens: int) -> None:
        await asyncio.sleep(0)
        if self.hold_after == num_tokens:
            self.reached_gate.set()
            await self.gate.wait()
        if self.fail_after == num_tokens:
            raise self.failure


def _answer(
    index: int, reply: bytes, params: SamplingParams, lora_request: LoRARequest | None, is_last: bool, is_cut: bool
) -> CompletionOutput:
    return CompletionOutput(
        index,
        reply.decode(errors="ignore"),
        list(reply),
        logprobs=None if params.logprobs is None else [_logprobs(token, params.logprobs) for token in reply],
        finish_reason=None if not is_last else "length" if is_cut else "stop",
        lora_request=lora_request,
    )


def _logprobs(token: int, num_top: int) -> dict[int, Logprob]:
    table = {token: Logprob(-0.5, 2, chr(token))}
    for rank, other in enumerate((token + 1, token + 2), start=1):
        if rank <= num_top:
            table[other] = Logprob(-0.25 * rank if rank == 1 else float("-inf"), rank if rank == 1 else 3, chr(other))
    return table


def _prompt_logprobs(prompt: list[int], params: SamplingParams) -> list[dict[int, Logprob] | None] | None:
    if params.prompt_logprobs is None:
        return None
    return [None, *(_logprobs(token, params.prompt_logprobs) for token in prompt[1:])]
