"""Every yaml composes and becomes the frozen object it names; a misspelt, dead or ill-typed setting does not."""

from __future__ import annotations

import dataclasses
import json
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import hydra
import pytest
from conf_fixtures import CONF, build, composed, frozen, without_hydra
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf

from experiments.run import command
from experiments.run.command import Frozen
from experiments.run.spec import Member, RunSpec
from sensmerge import adapters, coefficients, mergers, onebit
from sensmerge.coefficients import Rule
from sensmerge.mergers import Merger
from sensmerge.publish import classes
from sensmerge.store import describe

NOT_CHOSEN_AT_THE_TOP = {"benchmark", "family", "source", "hydra", "protocol", "recommended", "trim", "validation"}
GROUPS = (
    "model",
    "merger",
    "scaling",
    "calibration",
    "suite",
    "evaluation",
    "tracking",
    "output",
    "launcher",
    "experiment",
)
CHOICES = [
    (group, path.relative_to(CONF / group).with_suffix("").as_posix())
    for group in GROUPS
    for path in sorted((CONF / group).rglob("*.yaml"))
    if path.parent.name != "paper"  # with a protocol, which has no meaning but for these: the tests at the end
]


def test_every_group_has_a_choice() -> None:
    folders = {path.name for path in CONF.iterdir() if path.is_dir()} - NOT_CHOSEN_AT_THE_TOP
    assert folders == set(GROUPS) == {group for group, _ in CHOICES}


def together(choices: list[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Every choice in one of few command lines: composing takes long, and the groups do not depend on each other."""
    groups = [[f"{group}={name}" for group, name in choices if group == which] for which in GROUPS]
    return [tuple(one for one in words if one) for words in zip_longest(*groups)]


@pytest.mark.parametrize(
    "words",
    [
        *together([choice for choice in CHOICES if choice[0] != "experiment"]),
        *(
            pytest.param((f"experiment={name}",), marks=[] if name == "quickstart" else [pytest.mark.slow])
            for group, name in CHOICES
            if group == "experiment"
        ),
    ],
    ids=" ".join,
)
def test_every_yaml_becomes_a_run_and_freezing_it_moves_nothing(words: tuple[str, ...]) -> None:
    config = composed(*words)
    plain = without_hydra(config)
    told = {key: value for key, value in OmegaConf.to_container(plain, resolve=True).items() if key != "protocol"}  # pyright: ignore
    spec = hydra.utils.instantiate(told, _convert_="all")
    assert isinstance(spec, RunSpec)
    assert len(spec.run_id) == 12
    kept = json.loads(json.dumps(dataclasses.asdict(command.freeze(plain, config.hydra))))
    assert command.build(Frozen(**kept)).identity() == spec.identity()


@pytest.mark.parametrize("path", sorted((CONF / "benchmark").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_benchmark_is_one(path: Path) -> None:
    benchmark = hydra.utils.instantiate(OmegaConf.load(path), _convert_="all")
    assert callable(benchmark.run)
    assert benchmark.name == (None if path.stem == "lm_eval" else path.stem), "but one, which is named by its suite"


DEFAULTS = [
    pytest.param(name, kind, id=f"{group}={name}")
    for group, kind in (("merger", Merger), ("scaling", Rule))
    for name in sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if name != "member"  # no merger
]


@pytest.mark.parametrize(("name", "kind"), DEFAULTS)
def test_mergers_and_rules_are_by_default_what_the_library_calls_by_that_name(name: str, kind: type) -> None:
    """Setting by setting: one that the yaml lacks could not be set on the command line."""
    group = "merger" if kind is Merger else "scaling"
    part = composed(f"{group}={name}", "model=tiny_lora")[group]  # for which no merger has parameters of its own
    made = classes.named(name, kind)
    assert describe(hydra.utils.instantiate(part, _convert_="all")) == describe(made)
    assert settings(OmegaConf.to_container(part)) == settings(dataclasses.asdict(cast(Any, made)))


def settings(value: Any) -> Any:
    """The names in nested dictionaries, without those that say which class."""
    if not isinstance(value, dict):
        return None
    return {key: settings(part) for key, part in value.items() if key not in ("_target_", "class", "version")}


def test_every_merger_and_rule_of_the_library_has_a_yaml() -> None:
    called: Any = [one.values[:2] for one in DEFAULTS]
    described = {json.dumps(describe(classes.named(name, kind))) for name, kind in called}
    own: list[Any] = [
        made for kind in (Merger, Rule) for made in classes.known(kind).values() if "sensmerge" in made.__module__
    ]
    variants = [one for place in (mergers, adapters, onebit, coefficients) for one in place.VARIANTS.values()]
    every = [*(made() for made in own), *variants]
    assert described == {json.dumps(describe(one)) for one in every}


def test_every_yaml_says_what_it_is_in_its_first_line() -> None:
    for path in sorted(CONF.rglob("*.yaml")):
        first, second, *_ = [*path.read_text().splitlines(), ""]
        assert (second if first.startswith("# @package") else first).startswith("# "), path


def test_paper_families_are_declared_with_three_experts() -> None:
    for name in ("llama2_7b", "llama2_13b", "mistral_7b"):
        assert sorted(build(f"model={name}", "suite=full").model.calibration) == ["code", "general", "math"]


@pytest.mark.parametrize(
    "override",
    ["merger.densty=0.5", "merger.scale=much", "seed=abc", "colour=red", "scaling.temperature=0", "merger=tise"],
)
def test_misspelt_or_ill_typed_settings_fail_at_composition(override: str) -> None:
    with pytest.raises((ConfigCompositionException, InstantiationException)) as caught:
        build("merger=ties", override) if "=tise" not in override else build(override)
    assert override.split("=")[0].split(".")[-1].removeprefix("+") in str(caught.value)


def test_an_appended_key_is_refused_too() -> None:
    with pytest.raises(InstantiationException, match="densty"):
        build("merger=ties", "+merger.densty=0.5")


# ---- identity: what determines the numbers, and nothing else


def test_finished_runs_keep_their_names() -> None:
    """Runs of these are on disk. A change that makes another run of one has to be meant."""
    assert build("model=tiny", "device=cpu", "scaling.temperature=0.1").run_id == "c044316eb694"
    assert (
        build("model=tiny", "device=cpu", "merger=ties", "merger.scope=tensor", "scaling=uniform").run_id
        == "d77a9e5b3bd7"
    )
    old = ("calibration.dtype=float32", "calibration.overlong=error", "evaluation.dtype=auto")
    here = ("device=cpu", "output.data=null", "suite=smoke", *old)
    assert build("model=smollm2_135m", "merger=member", *here).run_id == "7c2d0d8368a1"
    assert build("model=llama2_7b", "scaling.temperature=0.1", *here).run_id == "6b9b85664d1a"
    assert build("model=mistral_7b", "merger=member", *here).run_id == "52f82426e2e8"


def test_what_becomes_of_tokens_is_part_of_a_run() -> None:
    ids = {build("model=llama2_7b", "suite=smoke", f"model.vocabulary={p}").run_id for p in ("base", "union", "error")}
    assert len(ids) == 3
    with pytest.raises(InstantiationException, match="vocabulary"):
        build("model=llama2_7b", "suite=smoke", "model.vocabulary=bse")


def test_where_things_lie_is_no_part_of_a_run() -> None:
    assert build("output.runs=/tmp/x", "tracking=none", "study=abc").run_id == build().run_id


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "merger.scale=0.4",
        "scaling.temperature=1",
        "calibration.samples=10",
        "evaluation.batch_size=2",
        "model.seed=1",
    ],
)
def test_what_moves_a_number_moves_the_identity(override: str) -> None:
    assert build(override).run_id != build().run_id


def test_uniform_does_not_depend_on_calibration_nor_members_on_the_seed() -> None:
    assert build("scaling=uniform", "calibration.samples=10").run_id == build("scaling=uniform").run_id
    assert build("merger=member", "seed=3", "scaling=uniform").run_id == build("merger=member").run_id
    spec = build("seed=3")
    assert spec.reference("math").run_id == build("merger=member", "merger.member=math").run_id
    assert spec.reference("math").merger == Member("math")


def test_calibration_follows_the_seed() -> None:
    assert build("seed=5").calibration.seed == 5


# ---- the tables and figures of a paper

PROTOCOLS = {"llama2_7b": "", "llama2_13b": "", "mistral_7b": "", "smollm2_135m": "smollm2_135m/", "tiny": ""}
PAPER = {
    "main": 30,
    "ablation": 45,
    "temperature": 30,
    "calibration": 9,
    "profiles": 3,
    "alignment": 3,
    "lambda": 30,
    "random": 180,
}


@pytest.mark.parametrize("part", PAPER)
@pytest.mark.parametrize(
    "protocol", [pytest.param(name, marks=[] if name == "tiny" else [pytest.mark.slow]) for name in PROTOCOLS]
)
def test_every_protocol_has_every_part_of_a_paper(protocol: str, part: str) -> None:
    """As many jobs as the part has settings, with the protocol's own mergers; the last is a run of that family."""
    chosen = (f"experiment=paper/{part}", f"protocol={protocol}")
    jobs = swept(*chosen)
    mergers = {word.removeprefix("merger=") for job in jobs for word in job if word.startswith("merger=")}
    tuned = {f"{PROTOCOLS[protocol]}{name}" for name in ("task_arithmetic", "ties", "dare", "dare_ties")}
    last = frozen(*jobs[-1])
    spec = command.build(last)
    assert (len(jobs), len(set(jobs))) == (PAPER[part], PAPER[part])
    assert mergers <= {"average", *tuned}
    assert (spec.model.name, spec.study, spec.seed) == (protocol, f"paper_{protocol}_{part}", 2)
    assert (spec.labels["experiment"], spec.labels["protocol"]) == (f"paper/{part}", protocol)
    assert "protocol" not in last.config


@pytest.mark.parametrize("part", PAPER)
def test_one_protocol_has_to_be_chosen(part: str) -> None:
    """Without one no job composes; of several, which `-m` cannot tell apart, none whose merger a protocol may tune."""
    with pytest.raises(ConfigCompositionException, match="You must specify 'protocol'"):
        composed(*swept(f"experiment=paper/{part}")[0])
    jobs = swept(f"experiment=paper/{part}", "protocol=tiny,smollm2_135m")
    tunable = [job for job in jobs if "merger=average" not in job]
    assert all(any(word.startswith("merger=one_protocol/") for word in job) for job in tunable)
    with pytest.raises(MissingConfigException, match="'merger/one_protocol/"):
        composed(*tunable[0])


def test_no_part_and_no_protocol_is_left_out_of_the_tests_above() -> None:
    assert {path.stem for path in (CONF / "protocol").rglob("*.yaml")} == set(PROTOCOLS)
    assert {path.stem for path in (CONF / "experiment/paper").rglob("*.yaml")} == set(PAPER)
    for part in PAPER:
        text = (CONF / f"experiment/paper/{part}.yaml").read_text()
        assert f"\n# python run.py -m experiment=paper/{part} protocol=tiny\n" in text
    assert {path for path in (CONF / "experiment").iterdir() if path.is_dir()} == {CONF / "experiment/paper"}


def swept(*overrides: str) -> list[tuple[str, ...]]:
    """The overrides of every job that `-m` with these makes: composed as it composes them, by Hydra's own sweeper."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        engine = GlobalHydra.instance().hydra
        assert engine is not None
        config = engine.compose_config("config", list(overrides), RunMode.MULTIRUN, from_shell=False)
    HydraConfig.instance().set_config(config)
    params = OmegaConf.to_container(config.hydra.sweeper.params, resolve=True)
    assert isinstance(params, dict)
    words = [*(f"{key}={values}" for key, values in params.items()), *overrides]
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), max_batch_size=None)
    return [tuple(job) for job in batch]
