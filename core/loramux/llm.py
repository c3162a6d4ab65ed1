"""LLM: the offline engine: lists of prompts in, lists of outputs out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from numbers import Integral
from types import UnionType
from typing import TypeVar, Unpack, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loramux.config import EngineArgs
from loramux.engine.llm_engine import LLMEngine
from loramux.engine.prompts import Prompt
from loramux.errors import RequestInvalid
from loramux.llm_options import LLMOptions
from loramux.lora.request import LoRARequest
from loramux.outputs import RequestOutput
from loramux.sampling_params import SamplingParams
from loramux.text.tokenizer import Tokenizer

T = TypeVar("T")
Prompts = Prompt | Sequence[Prompt]
Message = Mapping[str, object]
LoRARequests = LoRARequest | Sequence[LoRARequest | None] | None


class LLM:
    """One base model and its adapters, for batch work in this process.

    The options are EngineArgs' fields. Not thread-safe. Raises ConfigInvalid or ModelUnsupported.
    """

    def __init__(self, model: str, **options: Unpack[LLMOptions]) -> None:
        self.llm_engine = LLMEngine.from_engine_args(EngineArgs(model=model, **options))
        self._request_ids = itertools.count()

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequests = None,
    ) -> list[RequestOutput]:
        """Answer every prompt, in order; strings, token-id lists and mappings may be mixed.

        A mapping has "prompt" or "prompt_token_ids", and perhaps a "cache_salt": what was computed for the beginning
        of a prompt is used again only for those of the same salt.
        `sampling_params` and `lora_request` are one for all prompts or a list with one per prompt (None = the base
        model). Every adapter is read and checked before the first prompt runs. `use_tqdm` shows a progress bar.
        Raises RequestInvalid and AdapterInvalid before anything runs.
        """
        prompt_list = _as_prompt_list(prompts)
        params = SamplingParams() if sampling_params is None else sampling_params
        params_list = _one_per_prompt("sampling_params", params, len(prompt_list))
        _check_types("sampling_params", params_list, SamplingParams)
        lora_list = _one_per_prompt("lora_request", lora_request, len(prompt_list))
        _check_types("lora_request", lora_list, LoRARequest | None)
        for adapter in dict.fromkeys(lora for lora in lora_list if lora is not None):
            self.llm_engine.add_lora(adapter)
        request_ids: list[str] = []
        try:
            for prompt, params, lora in zip(prompt_list, params_list, lora_list, strict=True):
                request_id = str(next(self._request_ids))
                self.llm_engine.add_request(request_id, prompt, params, lora)
                request_ids.append(request_id)
            outputs = self._run(len(prompt_list), use_tqdm=use_tqdm)
        finally:
            for request_id in request_ids:  # after an interrupt or a refused prompt; finished ones are gone already
                self.llm_engine.abort_request(request_id)
        return [outputs[request_id] for request_id in request_ids]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequests = None,
        add_generation_prompt: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or a list of them, through the model's chat template; otherwise like `generate`."""
        if not isinstance(messages, list | tuple) or not messages:
            raise RequestInvalid(
                f"messages must be a list of at least one message, got {_shown(messages)}", param="messages"
            )
        is_one = isinstance(messages[0], Mapping)
        conversations = cast("list[Sequence[Message]]", [messages] if is_one else list(messages))
        prompts = [
            self.get_tokenizer().apply_chat_template(conversation, add_generation_prompt=add_generation_prompt)
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, lora_request=lora_request)

    def get_tokenizer(self) -> Tokenizer:
        """Return the tokenizer in use."""
        return self.llm_engine.tokenizer

    def _run(self, num_requests: int, *, use_tqdm: bool) -> dict[str, RequestOutput]:
        finished: dict[str, RequestOutput] = {}
        num_tokens = 0
        with _progress_bar(shown=use_tqdm) as progress:
            task = progress.add_task("Prompts", total=num_requests, rate="")
            while self.llm_engine.has_unfinished_requests():
                for output in self.llm_engine.step():
                    if output.finished:
                        finished[output.request_id] = output
                        num_tokens += sum(len(answer.token_ids) for answer in output.outputs)
                elapsed = progress.tasks[task].elapsed or 0.0
                rate = f"{num_tokens / elapsed:.1f} tokens/s" if elapsed else ""
                progress.update(task, completed=len(finished), rate=rate)
        return finished


def _progress_bar(*, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[rate]}"),
        console=Console(stderr=True),  # standard output is for the answers
        disable=not shown,
        transient=False,
    )


def _as_prompt_list(prompts: Prompts) -> list[Prompt]:
    """Tell one prompt from a list of them: a flat list of integers is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if hasattr(prompts, "tolist"):  # a numpy array or a tensor
        prompts = cast("Prompts", prompts.tolist())
    if not isinstance(prompts, list | tuple):
        raise RequestInvalid(
            f"prompts must be a string, a list of token ids, or a list of prompts; got {_shown(prompts)}",
            param="prompt",
        )
    if prompts and isinstance(prompts[0], Integral):
        return [cast("Sequence[int]", prompts)]
    return list(cast("Sequence[Prompt]", prompts))


def _one_per_prompt(name: str, value: T | Sequence[T], num_prompts: int) -> list[T]:
    if not isinstance(value, list | tuple):
        return [cast("T", value)] * num_prompts
    if len(value) != num_prompts:
        raise RequestInvalid(
            f"{name} has {len(value)} entries for {num_prompts} prompts; give one for all, or one per prompt",
            param=name,
        )
    return list(value)


def _check_types(name: str, values: Sequence[object], accepted: type | UnionType) -> None:
    for value in values:
        if not isinstance(value, accepted):
            raise RequestInvalid(
                f"{name} must be {_name(accepted)}, or a list of them; got {_shown(value)}", param=name
            )


def _name(accepted: type | UnionType) -> str:
    return accepted.__name__ if isinstance(accepted, type) else " or ".join(_name(kind) for kind in accepted.__args__)


def _shown(value: object) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:60] + '…'}"
