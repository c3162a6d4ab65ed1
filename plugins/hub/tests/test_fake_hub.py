"""The fake Hub speaks the Hub's API: the client's own, whole, download gets the same files from it."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from hub_cases import CONFIG, FILES, WEIGHTS, Adapters


@pytest.fixture
def api(adapters: Adapters, monkeypatch: pytest.MonkeyPatch) -> huggingface_hub.HfApi:
    # With telemetry the client asks the real Hub for a list of agents.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    return huggingface_hub.HfApi(adapters.hub.url)


def test_the_client_reads_the_metadata(api: huggingface_hub.HfApi, adapters: Adapters) -> None:
    info = api.model_info("my-org/sql", revision="main", files_metadata=True)
    found = adapters.found()
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    digests = {sibling.rfilename: sibling.lfs.sha256 for sibling in info.siblings or () if sibling.lfs}
    assert (info.id, info.sha) == ("my-org/sql", found.revision)
    assert sizes == {name: len(content) for name, content in FILES.items()}
    assert digests == {WEIGHTS: found.weights.sha256}
    assert len(set(adapters.calls())) == 1, "the client and the resolver ask in different words"


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_the_client_downloads_the_files(api: huggingface_hub.HfApi, tmp_path: Path, name: str) -> None:
    path = api.hf_hub_download("my-org/sql", name, local_dir=tmp_path)
    assert Path(path).read_bytes() == FILES[name]


def test_the_client_understands_what_is_not_there(api: huggingface_hub.HfApi) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("my-org/unknown")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("my-org/sql", revision="v9")
