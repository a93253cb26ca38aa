"""Building the embedded family in miniature: complete, reproducible, published whole."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from experiments.families import tiny_model
from experiments.families.tiny import TASKS, Sizes, Tiny
from sensmerge import models
from sensmerge.checkpoints import reader
from sensmerge.store import describe

CONF = Path(__file__).resolve().parents[3] / "conf"


def declared() -> Tiny:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("config").model, _convert_="all")


def miniature() -> Tiny:
    """Two steps of everything."""
    family = declared()
    return dataclasses.replace(
        family,
        base=dataclasses.replace(family.base, steps=2),
        experts={task: dataclasses.replace(recipe, steps=2) for task, recipe in family.experts.items()},
        architecture=tiny_model.Architecture(layers=2, hidden=32, intermediate=64),
        sizes=Sizes(test=5, validation=5, calibration=10, math_train=40, code_train=40),
    )


def test_every_part_of_the_recipe_is_part_of_the_name(tmp_path: Path) -> None:
    family = declared()
    names = {
        family.directory(tmp_path).name,
        dataclasses.replace(family, seed=1).directory(tmp_path).name,
        dataclasses.replace(family, muon=0.02).directory(tmp_path).name,
        dataclasses.replace(family, sizes=Sizes(test=5)).directory(tmp_path).name,
        miniature().directory(tmp_path).name,
    }
    assert len(names) == 5
    with pytest.raises(ValueError, match="tasks are"):
        dataclasses.replace(family, experts={"math": family.base})


def test_digits_and_newlines_are_tokens_of_their_own() -> None:
    tokenizer = tiny_model.train_tokenizer(["def f(x):\n    return 12\n", "12 12 12\n    12"] * 9, 300)
    pieces = [tokenizer.decode([token]) for token in tokenizer("x\n    12")["input_ids"]]
    assert pieces[-2:] == ["1", "2"]
    assert "\n" in pieces
    prompt, answer = "def f(x):\n", "    return 12\n"
    assert tokenizer(prompt)["input_ids"] + tokenizer(answer)["input_ids"] == tokenizer(prompt + answer)["input_ids"]


def test_what_stands_in_the_way_is_said_before_building(tmp_path: Path) -> None:
    family = miniature()
    assert family.problems(tmp_path / "not" / "there" / "yet", None) == []
    (tmp_path / "file").write_text("")
    assert "no writable directory" in family.problems(tmp_path / "file", None)[0]
    family.directory(tmp_path).mkdir(parents=True)
    assert "no finished build" in family.problems(tmp_path, None)[0]
    with pytest.raises(OSError, match="delete it"):
        family.prepare(tmp_path, None)


def _starts_a_worker_and_dies(pids: Path) -> None:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=tiny_model.end_with_parent)
    pids.write_text(str(pool.submit(os.getpid).result()))
    pool.submit(time.sleep, 60)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_workers_end_when_the_build_is_killed(tmp_path: Path) -> None:
    building = multiprocessing.get_context("spawn").Process(target=_starts_a_worker_and_dies, args=(tmp_path / "pid",))
    building.start()
    building.join()
    assert building.exitcode == -signal.SIGKILL
    worker = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(worker)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_built_twice_it_is_the_same_bytes_and_the_second_call_builds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = miniature()
    (tmp_path / "a" / "families").mkdir(parents=True)
    home = family.directory(tmp_path / "a")
    home.with_name(f"{home.name}.part").mkdir()  # what a killed build leaves
    members = family.prepare(tmp_path / "a", None)
    again = family.prepare(tmp_path / "b", None)
    for one, other in [(members.base, again.base), *((members.experts[t], again.experts[t]) for t in TASKS)]:
        assert reader.digest(one) == reader.digest(other)
    assert len({reader.digest(path) for path in [members.base, *members.experts.values()]}) == 4
    record = json.loads((home / "family.json").read_text())
    assert set(record["parts"]) == {"base", *TASKS}
    assert record["recipe"] == describe(family)
    assert not home.with_name(f"{home.name}.part").exists()
    assert models.load(members.experts["math"]).config.num_key_value_heads == 2
    assert members.data is not None
    assert len((members.data / "code_test.jsonl").read_text().splitlines()) == 5
    monkeypatch.setattr(Tiny, "_build", lambda *_: pytest.fail("built again"))
    assert family.prepare(tmp_path / "a", None) == members
