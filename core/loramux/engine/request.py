"""Request: one sequence on its way through the engine, from waiting to finished."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from loramux.engine.block_pool import BlockHash, hash_block
from loramux.sampling_params import SamplingParams


class RequestStatus(Enum):
    """Where a request is; only the scheduler moves it."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """The scheduler's view of one sequence: its tokens, how many of them have KV, and which blocks hold it.

    `digest` is the adapter's identity, None for the base model. Requests share prefix blocks only within one
    `cache_salt`. `max_total_tokens` bounds prompt and answer together. `tenant` is whose turn it takes; everything
    without one shares a turn.
    """

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        digest: str | None,
        cache_salt: str | None = None,
        max_total_tokens: int,
        tenant: str | None = None,
    ) -> None:
        self.request_id = request_id
        self.params = params
        self.digest = digest
        self.cache_salt = cache_salt
        self.max_total_tokens = max_total_tokens
        self.tenant = tenant
        self.prompt_token_ids = tuple(prompt_token_ids)
        self.output_token_ids: list[int] = []
        self.token_ids = list(prompt_token_ids)
        self.status = RequestStatus.WAITING
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.num_prompt_logprobs = 0
        self.num_preemptions = 0
        self.slot_wait_steps = 0
        self.block_table: list[int] = []
        self._block_hashes: list[BlockHash] = []

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def max_num_tokens(self) -> int:
        """The most tokens that prompt and answer can come to."""
        num_answer = self.params.max_tokens
        room = self.max_total_tokens
        return room if num_answer is None else min(room, self.num_prompt_tokens + num_answer)

    @property
    def needs_prompt_logprobs(self) -> bool:
        """Whether logits of prompt positions are still owed."""
        return self.params.prompt_logprobs is not None and self.num_prompt_logprobs < self.num_prompt_tokens - 1

    def append(self, token_id: int) -> None:
        """Add the token that the last step chose."""
        self.output_token_ids.append(token_id)
        self.token_ids.append(token_id)

    def block_hashes(self, num_tokens: int, block_size: int) -> list[BlockHash]:
        """Return the hashes of the full blocks among the first `num_tokens` tokens."""
        num_full = num_tokens // block_size
        while len(self._block_hashes) < num_full:
            start = len(self._block_hashes) * block_size
            parent = self._block_hashes[-1] if self._block_hashes else None
            token_ids = self.token_ids[start : start + block_size]
            self._block_hashes.append(hash_block(parent, token_ids, self.digest, self.cache_salt))
        return self._block_hashes[:num_full]
