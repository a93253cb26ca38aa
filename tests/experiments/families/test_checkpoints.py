"""Published or local checkpoints: bad sources named before work, everything used where it lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.data import Pairs, Rows
from experiments.families.checkpoints import Checkpoints, Source


def of(base: Source, **experts: Source) -> Checkpoints:
    pairs = Pairs((Rows("rows.jsonl"),), prompt="{{q}}", answer="{{a}}")
    return Checkpoints("given", base, experts, dict.fromkeys(experts, pairs))


def test_local_checkpoints_are_used_where_they_are(family: dict[str, Path], tmp_path: Path) -> None:
    given = of(Source(path=family["base"]), math=Source(path=family["math"]))
    assert given.problems(tmp_path, None) == []
    members = given.prepare(tmp_path / "cache", None)
    assert (members.base, members.experts) == (family["base"], {"math": family["math"]})
    assert members.vocabulary == "base"
    assert not (tmp_path / "cache").exists()


def test_every_bad_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    given = of(
        Source(path=tmp_path / "gone"),
        both=Source(path=tmp_path, id="a/b"),
        neither=Source(),
        pinned=Source(path=tmp_path, revision="main"),
        remote=Source(id="nobody/nothing-of-this-name"),
    )
    found = given.problems(tmp_path, None)
    for part in ("model.base: no checkpoint at", "experts.both: both of", "experts.neither: neither of",
                 "experts.pinned: revision=main", "the weights of nobody/nothing-of-this-name are not in"):  # fmt: skip
        assert sum(part in line for line in found) == 1, part
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        given.prepare(tmp_path, None)


def test_offline_is_no_problem_for_what_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json"))
    assert Source(id="a/b").problem() is None
    assert not Source(id="a/b").unreachable()


def test_old_weights_are_fetched_only_where_there_are_no_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    calls: list[tuple[str | None, list[str]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    Source(id="a/b", revision="v1").fetch()
    assert [revision for revision, _ in calls] == ["v1", tmp_path.name]
    assert not any(pattern.endswith(".bin") for pattern in calls[0][1])
    (tmp_path / "model.safetensors").touch()
    Source(id="a/b").fetch()
    assert len(calls) == 3


def test_no_task_is_called_base(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no task can be called base"):
        Checkpoints("given", Source(path=tmp_path), {"base": Source(path=tmp_path)}, {"base": Pairs((), "", "")})
