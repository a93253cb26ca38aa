"""Evidence of a family on disk: each rule gets what it asked for, under the settings it fixes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import weights
from pipeline_fixtures import root  # noqa: F401

import sensmerge
from sensmerge import activations, models, sensitivity
from sensmerge.calibrate import Calibrated, calibrate, draw_samples, read_pairs
from sensmerge.calibration import Calibration
from sensmerge.coefficients import VARIANTS, Acm, Fisher, Metagpt, Rule, Shuffled
from sensmerge.family.family import Family

TASKS = ("code", "general", "math")
SETTINGS = Calibration(samples=3, max_length=32)


@pytest.fixture
def family(root: Path, tmp_path: Path) -> Family:
    return sensmerge.open_family(root / "base", {t: root / t for t in TASKS}, cache=tmp_path / "cache")


@pytest.fixture
def samples(family: Family, root: Path) -> dict[str, Any]:
    pairs = read_pairs(root / "data" / "pairs.jsonl")
    return draw_samples(dict.fromkeys(TASKS, pairs), family.shells["base"], SETTINGS)


class Asked:
    """What is kept, by kind, with its key."""

    def __init__(self) -> None:
        self.keys: dict[str, list[Mapping[str, Any]]] = {}

    def __call__(self, kind: str, key: Mapping[str, Any], what: str, compute: Callable[[], Any]) -> Any:
        self.keys.setdefault(kind, []).append(key)
        return compute()


def made(family: Family, samples: dict[str, Any], rule: Rule, asked: Asked, **more: Any) -> Calibrated:
    return calibrate(family, samples, rule, SETTINGS, device="cpu", keep=asked, **more)


@pytest.mark.parametrize("rule", [Metagpt(), Shuffled(of=Metagpt())])
def test_magnitudes_take_no_data(family: Family, root: Path, rule: Rule) -> None:
    asked = Asked()
    found = made(family, {}, rule, asked)
    base = weights(root / "base")
    assert found.evidence.magnitudes
    for task in TASKS:
        norms = {
            name: (t.double() - base[name].double()).norm().item() ** 2 for name, t in weights(root / task).items()
        }
        assert found.evidence.magnitudes[task] == pytest.approx(norms, rel=1e-6)
    assert asked.keys == {"magnitudes": [{"base": family.base_digest, "experts": family.expert_digests}]}
    assert found.samples == {}
    told = found.to_json()["evidence"]["magnitudes"]
    assert told == {task: pytest.approx(sum(found.evidence.magnitudes[task].values())) for task in TASKS}


@pytest.mark.parametrize("stream", [False, True])
def test_squared_gradients_are_each_experts_own(
    family: Family, samples: dict[str, Any], root: Path, stream: bool
) -> None:
    asked = Asked()
    found = made(family, samples, Fisher(), asked, stream=stream)
    assert found.evidence.fisher
    for task in TASKS:
        model = models.load(root / task, dtype="float32")
        want = sensitivity.sensitivities(model, samples[task], squared=True)
        assert found.evidence.fisher[task] == pytest.approx(want, rel=1e-5)
    assert (set(asked.keys), found.evidence.sensitivities) == ({"fisher"}, None)
    told = found.to_json()
    assert told["alpha"] is None
    assert [sum(value**2 for value in told["evidence"]["fisher"][task]) for task in TASKS] == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("stream", [False, True])
def test_information_is_of_base_and_expert_on_the_experts_samples(
    family: Family, samples: dict[str, Any], root: Path, stream: bool
) -> None:
    asked = Asked()
    found = made(family, samples, Acm(), asked, stream=stream)
    assert found.evidence.information
    base = models.load(root / "base", dtype="float32")
    for task in TASKS:
        model = models.load(root / task, dtype="float32")
        a, b = (activations.means(one, samples[task]) for one in (base, model))
        want = activations.information(a, b)
        assert found.evidence.information[task].keys() == want.keys()
        for bins, values in want.items():  # a number on an edge may fall on either side when streamed
            assert found.evidence.information[task][bins] == pytest.approx(values, abs=0.05 if stream else 1e-12)
    (key,) = asked.keys["information"]
    assert key["base"] == family.base_digest


def test_a_rule_that_brings_its_loss_is_calibrated_by_it(family: Family, samples: dict[str, Any]) -> None:
    asked = Asked()
    made(family, samples, VARIANTS["sens_rcp"], asked)
    made(family, samples, VARIANTS["task_specific"], asked)
    assert [key["loss"] for key in asked.keys["sensitivity"]] == ["full"] * 3 + ["answer"] * 3


def test_an_expert_that_is_the_base_has_no_share(root: Path, tmp_path: Path) -> None:
    family = sensmerge.open_family(root / "base", {"a": root / "base", "b": root / "code"}, cache=tmp_path / "c")
    table = made(family, {}, Metagpt(), Asked()).table
    torch.testing.assert_close(table.blocks, torch.tensor([[0.0], [2.0]], dtype=torch.float64).expand_as(table.blocks))
