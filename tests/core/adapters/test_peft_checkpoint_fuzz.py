"""Whatever bytes a folder holds, read_adapter answers with an adapter or with AdapterInvalid."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramux.errors import AdapterInvalid

MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["change", "insert", "delete", "truncate", "digit"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def mutate(content: bytes, mutations: list[tuple[str, float, bytes]], reach: int) -> bytes:
    """Apply the mutations within the first `reach` bytes, where the structure is."""
    for kind, where, new in mutations:
        place = int(where * min(reach, len(content)))
        match kind:
            case "change":
                content = content[:place] + new + content[place + len(new) :]
            case "insert":
                content = content[:place] + new + content[place:]
            case "delete":
                content = content[:place] + content[place + len(new) :]
            case "truncate":
                content = content[:place]
            case "digit":  # keep the JSON whole and change a number in it
                digits = [at for at in range(place, len(content[:reach])) if content[at : at + 1].isdigit()]
                if digits:
                    content = content[: digits[0]] + b"%d" % (new[0] % 10) + content[digits[0] + 1 :]
    return content


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=MUTATIONS | st.just([]), weights=MUTATIONS | st.just([]), anywhere=st.booleans())
def test_only_adapters_and_refusals_come_out(
    llama_base: Any, _llama_adapter: Path, tmp_path: Path, config: Any, weights: Any, anywhere: bool
) -> None:
    hasher = hashlib.sha256()
    for name, mutations in (("adapter_config.json", config), ("adapter_model.safetensors", weights)):
        content = (_llama_adapter / name).read_bytes()
        content = mutate(content, mutations, reach=len(content) if anywhere else 1500)
        (tmp_path / name).write_bytes(content)
        hasher.update(len(content).to_bytes(8, "little") + content)
    try:
        result = llama_base.read(tmp_path)
    except AdapterInvalid as refused:
        assert refused.code in AdapterInvalid.ADAPTER_CODES
        assert len(str(refused)) < 2000
        assert str(tmp_path) not in str(refused)
    else:
        assert result.digest == hasher.hexdigest()
        assert all(module.a.isfinite().all() and module.b.isfinite().all() for module in result.modules.values())


def test_an_untouched_adapter_comes_out(llama_base: Any, _llama_adapter: Path) -> None:
    """Keeps the campaign above honest: its starting point is sound."""
    assert llama_base.read(_llama_adapter).modules
    with pytest.raises(AdapterInvalid):
        llama_base.read(_llama_adapter / "absent")
