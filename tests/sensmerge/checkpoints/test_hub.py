"""Models by name, where the hub cannot be had: one line that says so, and what to do."""

from __future__ import annotations

from pathlib import Path

import datasets
import huggingface_hub
import pytest
from huggingface_hub import errors

from evaluation.data import Rows
from experiments.families import Located, Place
from experiments.planning import headers
from sensmerge.checkpoints import hub

NO_NETWORK = errors.HTTPError("[Errno -2] Name or service not known")
NOT_CACHED = errors.LocalEntryNotFoundError("cannot find it\nPlease check your internet connection")


def gated() -> Exception:
    error = errors.GatedRepoError.__new__(errors.GatedRepoError)
    error.args = ("403 Client Error",)
    return error


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (NO_NETWORK, r"Name or service not known\); connect this machine to the network, or give the path"),
        (NOT_CACHED, r"\(LocalEntryNotFoundError: cannot find it\); connect this machine"),
        (gated(), "ask for access on the model's page, then `hf auth login`"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line(
    error: Exception, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(FileNotFoundError, match=f"me/x@v2 could not be fetched .*{advice}") as caught:
        hub.fetch("me/x", "v2")
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_plan_without_the_network_says_what_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise NO_NETWORK

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", absent)
    never = Place(id="me/never-seen")
    found = headers.read(Located(never, {"math": Place(path=tmp_path / "not-built")}))
    assert found["base"].note == "me/never-seen: unknown until downloaded (HTTPError)"
    assert found["math"].note == "not built yet: it will be trained first"


def test_nor_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'me/rows' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    rows = Rows(hub="me/rows", config=None, split="test", file="rows.jsonl")
    with pytest.raises(FileNotFoundError, match=r"Couldn't reach .* or set output.data to a directory .* rows.jsonl"):
        rows.load(None)
