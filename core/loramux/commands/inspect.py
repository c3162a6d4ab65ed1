"""`loramux inspect PATH|NAME`: what is in an adapter, and how it fares in every check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.table import Table

from loramux.adapters.inspection import Base, Inspection, inspect_adapter
from loramux.commands.printing import add_row, console, print_json, size, table
from loramux.commands.search import SearchResult, search
from loramux.config import BaseMatch, EngineArgs
from loramux.lora.plugin_manager import PluginConfig

MAX_SHOWN_MODULES = 12
KV_CACHE_NBYTES = 1 << 26  # the base model is loaded as it would be served, but serves nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOptions:
    """What to inspect, and against what; `base` is a model to load, None = checks that need none."""

    target: str
    base: str | None
    served_model_name: tuple[str, ...]
    base_match: BaseMatch
    max_lora_rank: int
    plugins: PluginConfig
    as_json: bool


def show_inspection(options: InspectOptions) -> int:
    """Print all that is known of an adapter; 0 = it can be served, 1 = it cannot, 3 = nobody knows the name."""
    base = None if options.base is None else _load_base(options)

    def inspect(name: str, folder: Path, root: Path | None) -> Inspection:
        return inspect_adapter(
            folder,
            name=name,
            base=base,
            base_match=options.base_match,
            max_lora_rank=options.max_lora_rank,
            allowed_root=root,
        )

    if _is_path(options.target):
        folder = Path(options.target)
        return _show(inspect(folder.name, folder, None), options)
    result = search(
        options.target,
        base_model_name=(*options.served_model_name, options.base or "base")[0],
        plugins=options.plugins,
        inspect=inspect,
    )
    if result.inspection is None:
        return _show_failure(result, options)
    assert result.found is not None
    return _show(replace(result.inspection, folder=result.found.root), options)


def _is_path(target: str) -> bool:
    return target.startswith(("/", "./", "../", "~", ".")) or Path(target).is_dir()


def _load_base(options: InspectOptions) -> Base:
    from loramux.engine.llm_engine import LLMEngine  # loads torch and a model: only where it was asked for

    assert options.base is not None
    engine = LLMEngine(
        EngineArgs(
            model=options.base,
            served_model_name=options.served_model_name,
            enable_lora=True,
            max_loras=1,
            max_lora_rank=options.max_lora_rank,
            kv_cache_memory_bytes=KV_CACHE_NBYTES,
        )
    )
    engine.shutdown()
    return Base(engine.runner.base, engine.runner.base_weight, engine.runner.loaded.dtype)


def _show_failure(result: SearchResult, options: InspectOptions) -> int:
    assert result.error is not None
    if options.as_json:
        print_json({"error": {"type": type(result.error).__name__, "message": str(result.error)}})
    else:
        console().print(str(result.error), markup=False, soft_wrap=True)
    return result.exit_status


def _show(inspection: Inspection, options: InspectOptions) -> int:
    if options.as_json:
        print_json({**asdict(inspection), "valid": inspection.is_valid})
        return 0 if inspection.is_valid else 1
    out = console()
    out.print(_checks_table(inspection))
    if inspection.digest is not None:
        out.print()
        out.print(_modules_table(inspection))
        out.print()
        out.print(f"{inspection.folder}: {len(inspection.modules)} modules, {size(inspection.nbytes)}", markup=False)
        out.print(f"sha256 {inspection.digest}", markup=False, soft_wrap=True)
    return 0 if inspection.is_valid else 1


def _checks_table(inspection: Inspection) -> Table:
    checks = table("check", "verdict", "reason")
    for result in inspection.checks:
        add_row(checks, result.check, result.verdict, result.reason or "-")
    return checks


def _modules_table(inspection: Inspection) -> Table:
    modules = table("module", "rank", "scaling", "in", "out", "dtype")
    for module in inspection.modules[:MAX_SHOWN_MODULES]:
        add_row(
            modules,
            module.module,
            module.rank,
            f"{module.scaling:g}",
            module.in_features,
            module.out_features,
            module.dtype,
        )
    num_more = len(inspection.modules) - MAX_SHOWN_MODULES
    if num_more > 0:
        add_row(modules, f"… and {num_more} more: ranks {_ranks(inspection)}; --json lists all", "", "", "", "", "")
    return modules


def _ranks(inspection: Inspection) -> str:
    ranks: Sequence[int] = sorted({module.rank for module in inspection.modules})
    return ", ".join(map(str, ranks))
