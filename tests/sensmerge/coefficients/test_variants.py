"""The named readings of Sens-Merging against plain loops of their own, and against what they do to many blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from evidence_fixtures import EVIDENCE

from sensmerge.calibration import Calibration
from sensmerge.coefficients import VARIANTS, Evidence, Sens, SensL2s, Shuffled

TASKS = ["code", "general", "math"]
OUTSIDE = ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]


def many_blocks(n_blocks: int = 30) -> Evidence:
    """Three experts with profiles of their own, and distances that are not symmetric."""
    draw = torch.Generator().manual_seed(0)
    names = [f"model.layers.{block}.w" for block in range(n_blocks)] + OUTSIDE
    values = torch.rand(3, len(names), generator=draw, dtype=torch.float64) + 0.2
    sensitivities = {task: dict(zip(names, row, strict=True)) for task, row in zip(TASKS, values.tolist(), strict=True)}
    g = torch.rand(3, 3, generator=draw, dtype=torch.float64).fill_diagonal_(0) + 1 - torch.eye(3)
    return Evidence(TASKS, names, sensitivities, {"l2": g.tolist()})


def softmax(exponents: Sequence[float]) -> list[float]:
    total = sum(math.exp(one) for one in exponents)
    return [len(exponents) * math.exp(one) / total for one in exponents]


def loops(evidence: Evidence, *, farther: bool, own: bool) -> dict[str, list[float]]:
    """Group (a block's index, or a tensor's name) -> K sigma, in the order of the published steps, with tau summed."""
    assert evidence.sensitivities
    assert evidence.distances
    g = evidence.distances["l2"]
    summed = [sum(g[i][j] for j in range(3) if j != i) for i in range(3)]  # over j, not averaged
    nearness = summed if farther else [1 / one for one in summed]
    tau = [one / sum(nearness) for one in nearness]
    groups: dict[str, list[float]] = {}
    for name in evidence.names:
        if ".layers." in name or own:
            groups[name.split(".")[2] if ".layers." in name else name] = [
                evidence.sensitivities[task][name] for task in TASKS
            ]
    norms = [math.sqrt(sum(values[i] ** 2 for values in groups.values())) for i in range(3)]
    return {
        group: softmax([values[i] / norms[i] * tau[i] for i in range(3)])  # T = 1
        for group, values in groups.items()
    }


@pytest.mark.parametrize(("name", "farther", "own"), [("sens_words", False, False), ("sens_rcp", True, True)])
def test_a_reading_is_its_published_steps(name: str, farther: bool, own: bool) -> None:
    evidence = many_blocks()
    table = VARIANTS[name].table(evidence)
    want = loops(evidence, farther=farther, own=own)
    for block in range(30):
        assert table.blocks[:, block].tolist() == pytest.approx(want[str(block)], rel=1e-14)
    for tensor in OUTSIDE:
        expected = torch.tensor(want.get(tensor, [1.0, 1.0, 1.0]))
        torch.testing.assert_close(table.weights(tensor), expected)


def test_every_published_reading_is_uniform_to_a_few_percent_at_thirty_blocks() -> None:
    """Even these unlike profiles: alpha is of the order 1 / sqrt(30), and tau sums to 1."""
    evidence = many_blocks()
    for name in ("sens_words", "sens_rcp"):
        found = VARIANTS[name].table(evidence).summary()
        assert 0.9 < found["min"] < 1 < found["max"] < 1.1
    assert VARIANTS["sens_words"] == Sens(normalise="sum1", temperature=1.0)


def test_two_experts_with_tau_given_by_hand() -> None:
    # alpha: code (0.6, 0.8), math (0.8, 0.6); a = 0.75: tau is 0.25 of code and 0.75 of math; T = 0.5.
    table = SensL2s(a=0.75, temperature=0.5).table(EVIDENCE)
    for block, (code, math_) in enumerate([(0.3, 1.2), (0.4, 0.9)]):
        assert table.blocks[:, block].tolist() == pytest.approx(softmax([code, math_]), rel=1e-14)
    assert table.weights("model.norm.weight").tolist() == [1.0, 1.0]


def test_two_experts_and_no_others() -> None:
    SensL2s().check(["code", "math"])
    with pytest.raises(ValueError, match=r"two experts, whose tau are 1 - a and a; these are 3: \['code', 'general', "):
        SensL2s().check(TASKS)
    with pytest.raises(ValueError, match="these are 3"):
        SensL2s().table(many_blocks())


def test_a_reading_brings_its_loss_and_its_control_too() -> None:
    run = Calibration(samples=7, loss="answer")
    assert VARIANTS["sens_rcp"].calibrated(run) == Calibration(samples=7, loss="full")
    assert Shuffled(of=VARIANTS["sens_rcp"]).calibrated(run).loss == "full"
    assert VARIANTS["sens_words"].calibrated(run) == run
