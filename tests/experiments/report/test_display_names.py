"""Names and looks before readers: one for all that can be chosen, none twice, told apart without red or green."""

from __future__ import annotations

import doctest
import itertools
from pathlib import Path

import numpy as np

from experiments.report import display_names

CONF = Path(__file__).resolve().parents[3] / "conf"
# Machado, Oliveira and Fernandes (2009), https://doi.org/10.1109/TVCG.2009.113, table 1, severity 1.0: linear RGB seen
# without one kind of cone.
SEEN = {
    "as it is": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIELAB of "#rrggbb" (D65), as eyes of that kind see it."""
    signal = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    linear = np.clip(seen @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / np.array([0.9505, 1.0, 1.089]))  # all are bright enough for the cube root
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_worked_examples_hold() -> None:
    outcome = doctest.testmod(display_names)
    assert outcome.attempted
    assert not outcome.failed


def test_everything_that_can_be_chosen_has_a_name_and_a_look() -> None:
    mergers = {path.stem for path in (CONF / "merger").glob("*.yaml")} - {"member"}
    rules = {path.stem for path in (CONF / "scaling").glob("*.yaml")}
    benchmarks = {path.stem for path in (CONF / "benchmark").glob("*.yaml")}
    assert mergers
    assert mergers <= display_names.MERGERS.keys() & display_names.MARKERS.keys()
    assert rules
    assert rules <= display_names.RULES.keys() & display_names.LOOKS.keys()
    assert not [name for name in benchmarks if display_names.benchmark(name) == name]


def test_nothing_is_called_or_drawn_as_another() -> None:
    for named in (display_names.MERGERS, display_names.RULES, display_names.BENCHMARKS, display_names.MARKERS):
        assert len(set(named.values())) == len(named)
    assert len(set(display_names.LOOKS.values())) == len(display_names.LOOKS)


def test_colours_are_told_apart_by_every_eye_or_by_what_is_hollow() -> None:
    """CIE76 distance of all pairs of rules that are filled alike; about 2 is what eyes can just see."""
    for kind, seen in SEEN.items():
        for one, other in itertools.combinations(display_names.LOOKS, 2):
            looks = [display_names.LOOKS[name] for name in (one, other)]
            if looks[0].filled == looks[1].filled:
                apart = np.linalg.norm(lab(looks[0].colour, seen) - lab(looks[1].colour, seen))
                assert apart > 10, f"{one} and {other} to {kind}: {apart:.1f}"


def test_a_rule_of_ones_own_is_no_control() -> None:
    greys = {display_names.GREY, display_names.BLACK}
    grey = {name for name, look in display_names.LOOKS.items() if look.colour in greys}
    assert grey == {"uniform", "random", "fixed"}
    assert not [name for name in map(str, range(50)) if display_names.look(name).colour in greys]
    assert display_names.look("mine x=1") == display_names.look("mine")


def test_heat_maps_diverge_from_the_middle_and_alike_on_both_sides() -> None:
    eleven = display_names.DIVERGING
    lightness = [float(lab(colour, SEEN["as it is"])[0]) for colour in eleven]
    assert len(eleven) % 2
    assert lightness[:6] == sorted(lightness[:6])
    assert lightness[5:] == sorted(lightness[5:], reverse=True)
    below, above = (int(eleven[at][5:], 16) - int(eleven[at][1:3], 16) for at in (2, -3))  # blue less red
    assert below > 0 > above
