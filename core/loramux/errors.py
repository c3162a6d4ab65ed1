"""Every error that loramux raises on purpose: what is wrong, which one, what to do."""

from __future__ import annotations


class LoramuxError(Exception):
    """Base of all errors of loramux; anything else that escapes is a bug."""


class ConfigInvalid(LoramuxError):
    """A start-up setting is wrong; the message names the setting, its value and what is accepted."""


class ModelUnsupported(LoramuxError):
    """The base model cannot be served exactly; the message says why."""


class RequestInvalid(LoramuxError):
    """One request is wrong; `param` names the field, `code` is the stable machine-readable reason."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthExceeded(RequestInvalid):
    """A prompt and its answer can never fit into the context; `of_tokens` and `of_bytes` say how they are too long."""

    def __init__(self, context: int, excess: str, *, param: str = "prompt") -> None:
        super().__init__(
            f"This model's maximum context length is {context} tokens. However, {excess}. Please reduce the length.",
            param=param,
            code="context_length_exceeded",
        )

    @classmethod
    def of_tokens(
        cls, context: int, *, num_prompt: int, num_answer: int, param: str = "prompt"
    ) -> ContextLengthExceeded:
        """Say how many tokens were asked for, where both numbers are known."""
        asked = f"{num_prompt + num_answer} tokens ({num_prompt} in the prompt, {num_answer} in the completion)"
        return cls(context, f"you requested {asked}", param=param)

    @classmethod
    def of_bytes(cls, context: int, *, nbytes: int) -> ContextLengthExceeded:
        """Say how long the text is, where it is too long to be encoded at all."""
        return cls(context, f"your prompt of {nbytes} bytes has more than {context} tokens")


class AdapterNotFound(LoramuxError):
    """No active source knows an adapter of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"adapter {name!r} does not exist")
        self.name = name


class AdapterLoading(LoramuxError):
    """The adapter is on its way, but takes longer than a request may wait; asking again soon will find it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"adapter {name!r} is still loading")
        self.name = name


class AdapterInvalid(LoramuxError):
    """The adapter exists, but cannot be served; `code` is one of ADAPTER_CODES.

    `may_heal` is set where the same files may be readable later: no permission, a failing disk, a copy under way.
    """

    ADAPTER_CODES = ("adapter_invalid", "adapter_rank_too_high", "adapter_base_mismatch", "adapter_format_unsupported")

    def __init__(self, name: str, reason: str, *, code: str = "adapter_invalid", may_heal: bool = False) -> None:
        super().__init__(f"adapter {name!r}: {reason}")
        self.may_heal = may_heal
        self.name = name
        self.reason = reason
        self.code = code


class ResolverFailed(LoramuxError):
    """A source that may own the name could not answer; `retry_after_seconds` says when asking again makes sense."""

    def __init__(self, message: str, *, retryable: bool = True, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds


class SourceChanged(ResolverFailed):
    """The version of a file that was located is gone or replaced; locating it again may find the new one."""


class ResolverDenied(LoramuxError):
    """A source knows the name, but must not serve it to this caller: the chain stops, the caller sees "not found"."""


class PluginError(LoramuxError):
    """A plugin could not be loaded or broke its contract; the message names it."""


class RequestFailed(LoramuxError):
    """Computing this one request went wrong; the engine goes on."""


class EngineOverloaded(LoramuxError):
    """The engine cannot take this request now; trying again later may work."""


class StoreFull(EngineOverloaded):
    """No room for one more adapter on the disk, with all that is not in use evicted; it comes when others let go."""


class EngineDead(LoramuxError):
    """The engine thread has stopped; no request can be answered until a restart."""
