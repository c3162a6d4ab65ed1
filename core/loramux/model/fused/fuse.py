"""Which layers of a model have a faster form: those whose code is, word for word, the code that the form stands for.

Transformers' families are copies of a few originals, so their compiled code can be compared. Whoever differs by one
instruction keeps its own forward. `runner` compares the fused model with the model before it is served.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from types import CodeType

from torch import nn
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2

from loramux.config import Quantization
from loramux.model.ends import lm_head
from loramux.model.fused.layers import (
    attention_forward,
    attention_rows,
    causal_forward,
    decoder_forward,
    decoder_rows,
    mlp_rows,
    model_forward,
    module_forward,
    norm_rows,
)
from loramux.model.fused.linear import FusedLinear
from loramux.model.fused.stack import LayerStack
from loramux.model.host_memory import HugePages

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
MODELS = (modeling_llama.LlamaModel, modeling_mistral.MistralModel, modeling_qwen2.Qwen2Model)
DECODER_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


class FusedModel:
    """A model some of whose forwards are replaced. `linears` has the product that each linear layer is part of.

    stack: its decoder layers and what follows them, where they are computed as one.
    """

    def __init__(self) -> None:
        self.stack: LayerStack | None = None
        self.linears: dict[nn.Module, FusedLinear] = {}
        self.parts: dict[nn.Module, Callable[..., object]] = {}
        self._replaced: list[nn.Module] = []

    def replace(
        self, module: nn.Module, forward: Callable[..., object], part: Callable[..., object] | None = None
    ) -> None:
        """Let a module compute by another forward, and a layer around it by `part`, on rows."""
        module.forward = forward
        self._replaced.append(module)
        if part is not None:
            self.parts[module] = part

    def linear(self, members: Sequence[nn.Module], *, is_lm_head: bool = False) -> FusedLinear:
        """One product for linear layers of one input."""
        linears = [member for member in members if isinstance(member, nn.Linear)]
        product = FusedLinear(linears, is_lm_head=is_lm_head)
        self.linears.update(dict.fromkeys(members, product))
        return product

    def undo(self) -> None:
        """Give every module its own forward back; only before `pack`."""
        for module in self._replaced:
            vars(module).pop("forward", None)
        self.linears.clear()
        self.parts.clear()
        self._replaced.clear()
        self.stack = None

    def pack(self, quantization: Quantization | None = None) -> None:
        """Bring all weights into the form that products want; see FusedLinear.pack."""
        pages = HugePages()
        for product in dict.fromkeys(self.linears.values()):
            product.pack(quantization, pages)

    @property
    def num_weights(self) -> int:
        """How many weights `pack` has in its hands."""
        return sum(product.num_weights for product in dict.fromkeys(self.linears.values()))


def fuse(model: PreTrainedModel, flat_modules: Collection[str]) -> FusedModel:
    """Replace what has a faster form. flat_modules: the paths of linear layers that see the batch's rows in order."""
    fused = FusedModel()
    flat = {model.get_submodule(path) for path in flat_modules}
    for module in model.modules():
        _fuse_layer(module, flat, fused)
    for module in model.modules():
        if _is_same(module, modeling_llama.LlamaDecoderLayer):
            parts = [fused.parts.get(getattr(module, name)) for name in DECODER_PARTS]
            if None not in parts:
                layer = decoder_rows(*parts)  # type: ignore[arg-type]
                fused.replace(module, decoder_forward(layer), layer)
    head = lm_head(model)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module in flat and module not in fused.linears:
            fused.replace(module, module_forward(fused.linear([module], is_lm_head=module is head)))
    for module in model.modules():
        if any(_is_same(module, original) for original in MODELS):
            _stack(module, model, fused)
    return fused


def _fuse_layer(module: nn.Module, flat: Collection[nn.Module], fused: FusedModel) -> None:
    if _is_same(module, modeling_llama.LlamaRMSNorm):
        norm = norm_rows(module.weight, module.variance_epsilon)  # type: ignore[arg-type]
        fused.replace(module, module_forward(norm), norm)
    elif _is_same(module, modeling_llama.LlamaMLP) and _are_linear(module, MLP_PROJECTIONS, flat):
        gate, up, down = (getattr(module, name) for name in MLP_PROJECTIONS)
        mlp = mlp_rows(fused.linear([gate, up]), fused.linear([down]), module.act_fn)  # type: ignore[arg-type]
        fused.replace(module, module_forward(mlp), mlp)
    elif (window := _window(module)) is not None and _are_linear(module, PROJECTIONS, flat):
        query, key, value, out = (getattr(module, name) for name in PROJECTIONS)
        attention = attention_rows(module, fused.linear([query, key, value]), fused.linear([out]), window)
        fused.replace(module, attention_forward(attention), attention)


def _stack(body: nn.Module, model: PreTrainedModel, fused: FusedModel) -> None:
    """Let a model go straight through its layers, where each has a faster form, and on to lm_head if that is next."""
    layers = body.layers[: body.config.num_hidden_layers]  # type: ignore[index, union-attr]  # of each of MODELS
    parts = [fused.parts.get(module) for module in (*layers, body.norm)]
    if None in parts:
        return
    *parts, norm = parts
    begin = body.embed_tokens, body.rotary_emb
    head = fused.linears.get(lm_head(model))  # type: ignore[arg-type]
    if head is not None and _is_same(model, modeling_llama.LlamaForCausalLM) and model.model is body:
        fused.stack = LayerStack(parts, lambda rows: head(norm(rows)))  # type: ignore[arg-type, misc]
        fused.replace(model, causal_forward(*begin, fused.stack))  # type: ignore[arg-type]
    else:
        fused.stack = LayerStack(parts, norm)  # type: ignore[arg-type]
        fused.replace(body, model_forward(*begin, fused.stack))  # type: ignore[arg-type]


def _window(module: nn.Module) -> Callable[[], int | None] | None:
    """How to learn the sliding window of an attention layer that has a fused form; None for any other module."""
    rotary = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    if rotary is None or not _same_code(rotary, modeling_llama.apply_rotary_pos_emb):
        return None
    if _is_same(module, modeling_llama.LlamaAttention):
        return lambda: None
    if _is_same(module, modeling_mistral.MistralAttention):
        return functools.partial(getattr, module.config, "sliding_window", None)
    if _is_same(module, modeling_qwen2.Qwen2Attention):
        return functools.partial(getattr, module, "sliding_window")
    return None


def _are_linear(module: nn.Module, names: Sequence[str], flat: Collection[nn.Module]) -> bool:
    members = [getattr(module, name, None) for name in names]
    return all(type(member) is nn.Linear and member in flat for member in members)


def _is_same(module: nn.Module, original: type[nn.Module]) -> bool:
    return "forward" not in vars(module) and _same_code(type(module).forward, original.forward)


def _same_code(function: Callable[..., object], original: Callable[..., object]) -> bool:
    ours, theirs = (inspect.unwrap(one).__code__ for one in (function, original))
    return list(_meaning(ours)) == list(_meaning(theirs))


def _meaning(code: CodeType) -> Iterator[object]:
    """What a function computes: its instructions, the names it uses and its constants, but for its docstring."""
    yield code.co_code
    yield code.co_names
    yield code.co_varnames[: code.co_argcount]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _meaning(constant)
        elif not isinstance(constant, str) or len(constant) < len("a docstring, surely"):
            yield constant
