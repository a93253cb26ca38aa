"""What mergers, rules and benchmarks are called before readers, and how each looks: the same in every table and figure.

Names in records, in table.csv and on the command line stay those of the yamls (dare_ties); these are for eyes
(DARE-TIES). A name that is not known here is shown as it is, so a merger of one's own needs no entry.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

MERGERS: Mapping[str, str] = {
    "average": "Average",
    "task_arithmetic": "Task Arithmetic",
    "ties": "TIES",
    "dare": "DARE",
    "dare_ties": "DARE-TIES",
    "breadcrumbs": "Breadcrumbs",
    "aim": "AIM",
    "consensus": "Consensus TA",
    "covariance": "LOT",
    "della": "DELLA",
    "iso_c": "Iso-C",
    "lora_average": "LoRA Average",
    "lora_dare": "LoRA DARE",
    "lora_ties": "LoRA TIES",
    "model_stock": "Model Stock",
    "onebit": "1bit-Merging",
    "pcb": "PCB-Merging",
    "prism": "PRISM",
    "regmean": "RegMean",
    "robustmerge": "RobustMerge",
    "slerp": "SLERP",
    "tsv_m": "TSV-Merge",
    "wudi": "WUDI-Merging",
    "wudi_closed": "WUDI, closed form",
}
RULES: Mapping[str, str] = {
    "uniform": "uniform",
    "random": "shuffled",
    "task_specific": "task-specific only",
    "cross_task": "cross-task only",
    "cross_task_farther": "cross-task only, farther",
    "sens": "Sens-Merging",
    "sens_farther": "Sens-Merging, farther",
    "sens_words": "Sens-Merging (words)",
    "sens_rcp": "Sens-Merging (RCP)",
    "sens_l2s": "Sens-Merging (L2S)",
    "acm": "ACM",
    "aim": "AIM",
    "fisher": "Fisher",
    "fixed": "fixed",
    "lines": "LiNeS",
    "metagpt": "MetaGPT",
    "oracle": "oracle",
}
BENCHMARKS: Mapping[str, str] = {
    "gsm8k": "GSM8K",
    "hellaswag": "HellaSwag",
    "humaneval": "HumanEval",
    "math": "MATH",
    "math500": "MATH-500",
    "mbpp": "MBPP",
    "mmlu": "MMLU",
    "truthfulqa_mc1": "TruthfulQA MC1",
    "truthfulqa_mc2": "TruthfulQA MC2",
    "tiny_code": "tiny code",
    "tiny_general": "tiny general",
    "tiny_math": "tiny math",
    "lm_eval": "lm-eval",
}
MEASURES: Mapping[str, str] = {"acc": "accuracy", "bpb": "bits/byte", "loss": "loss"}
SETTINGS: Mapping[str, str] = {"temperature": "T", "scale": "λ", "samples": "n", "batch_size": "batch size"}


@dataclass(frozen=True)
class Look:
    """How a rule is drawn: colour (#rrggbb), filled marks and a whole line, or hollow marks and a broken line.

    No two rules look the same; of two that share a colour one is hollow.
    """

    colour: str
    filled: bool

    @property
    def dashes(self) -> str:
        """Of its line, in matplotlib's and CSS's words alike: solid or dashed."""
        return "solid" if self.filled else "dashed"


# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), without its yellow, which white swallows; wine of Paul
# Tol's muted scheme (https://sronpersonalpages.nl/~pault/); grey and black for weights that no rule made. On a dark
# ground black has to be the colour of the text.
BLUE, SKY, GREEN, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#CC79A7"
ORANGE, VERMILLION, WINE, GREY, BLACK = "#E69F00", "#D55E00", "#882255", "#707070", "#000000"
LOOKS: Mapping[str, Look] = {
    "uniform": Look(GREY, filled=True),
    "random": Look(GREY, filled=False),
    "fixed": Look(BLACK, filled=True),
    "sens": Look(BLUE, filled=True),
    "sens_farther": Look(BLUE, filled=False),
    "task_specific": Look(SKY, filled=True),
    "sens_l2s": Look(SKY, filled=False),
    "cross_task": Look(GREEN, filled=True),
    "cross_task_farther": Look(GREEN, filled=False),
    "sens_words": Look(PURPLE, filled=True),
    "sens_rcp": Look(PURPLE, filled=False),
    "fisher": Look(ORANGE, filled=True),
    "lines": Look(ORANGE, filled=False),
    "acm": Look(VERMILLION, filled=True),
    "aim": Look(VERMILLION, filled=False),
    "metagpt": Look(WINE, filled=True),
    "oracle": Look(WINE, filled=False),
}
# Of heat maps. Diverging: about a white middle, ColorBrewer's PuOr from purple (below) to orange (above), the way round
# that d3 has it; matplotlib's "PuOr" is the other. Sequential: cividis, under this name in d3 and matplotlib.
DIVERGING = (
    "#2D004B", "#542788", "#8073AC", "#B2ABD2", "#D8DAEB", "#F7F7F7",
    "#FEE0B6", "#FDB863", "#E08214", "#B35806", "#7F3B08",
)  # fmt: skip
SEQUENTIAL = "cividis"
_HUES = (BLUE, SKY, GREEN, PURPLE, ORANGE, VERMILLION, WINE)  # for a rule of one's own

Marker = str | tuple[int, int, int]  # as matplotlib takes it: a letter, or (points, 0 polygon or 1 star, degrees)
MARKERS: Mapping[str, Marker] = {
    "aim": (4, 0, 0),
    "average": "o",
    "task_arithmetic": "s",
    "ties": "^",
    "dare": "v",
    "dare_ties": "D",
    "breadcrumbs": "<",
    "consensus": ">",
    "covariance": "p",
    "della": "h",
    "iso_c": "d",
    "lora_average": "8",
    "lora_dare": (3, 1, 180),
    "lora_ties": (3, 1, 0),
    "model_stock": "P",
    "onebit": (4, 1, 0),
    "pcb": "X",
    "prism": (4, 1, 45),
    "regmean": "H",
    "robustmerge": (6, 1, 0),
    "slerp": (8, 1, 0),
    "tsv_m": "*",
    "wudi": (7, 1, 0),
    "wudi_closed": (7, 0, 0),
}
_OTHER_MARKER: Marker = "."


def merger(shown: str) -> str:
    """Of a row's merger, settings and all; base and experts are mergers here.

    >>> merger("dare_ties"), merger("task_arithmetic scale=0.5"), merger("expert math"), merger("mine")
    ('DARE-TIES', 'Task Arithmetic, λ = 0.5', 'expert math', 'mine')
    """
    return _named(shown, MERGERS)


def rule(shown: str) -> str:
    """Of a row's scaling, settings and all.

    >>> rule("random"), rule("sens temperature=0.1"), rule("sens loss=answer samples=30")
    ('shuffled', 'Sens-Merging, T = 0.1', 'Sens-Merging, loss = answer, n = 30')
    """
    if shown.startswith("fixed "):  # weights, in the order of their tasks
        return f"fixed, {'/'.join(word.partition('=')[2] for word in shown.split(' ')[1:])}"
    return _named(shown, RULES)


def comparison(rule_shown: str, against: str, against_merger: str | None = None) -> str:
    """Of a registered comparison: what is taken from what.

    >>> comparison("task_specific", "uniform"), comparison("sens", "shuffles"), comparison("a", "uniform", "dare_ties")
    ('task-specific only − uniform', 'Sens-Merging − shuffled', 'a − uniform (DARE-TIES)')
    """
    other = rule("random" if against == "shuffles" else against)
    return f"{rule(rule_shown)} − {other}" + (f" ({merger(against_merger)})" if against_merger else "")


def benchmark(name: str) -> str:
    """
    >>> benchmark("gsm8k"), benchmark("bpb_math"), benchmark("mmlu_instruct"), benchmark("mine")
    ('GSM8K', 'MATH bits/byte', 'MMLU chat', 'mine')
    """
    if name.startswith("bpb_"):
        return f"{benchmark(name.removeprefix('bpb_'))} bits/byte"
    if name.endswith("_instruct"):
        return f"{benchmark(name.removesuffix('_instruct'))} chat"
    return BENCHMARKS.get(name, name)


def measure(name: str) -> str:
    """Of a mean over benchmarks: "acc" -> "accuracy"."""
    return MEASURES.get(name, name)


def look(shown: str) -> Look:
    """Of a row's scaling; its settings do not matter. One that is not known has a colour by its name, for ever.

    >>> look("sens temperature=0.1") == look("sens") != look("random")
    True
    """
    name = shown.split(" ")[0]
    return LOOKS.get(name) or Look(_HUES[zlib.crc32(name.encode()) % len(_HUES)], filled=False)


def marker(shown: str) -> Marker:
    """Of a row's merger; its settings do not matter.

    >>> marker("ties scale=0.4"), marker("mine")
    ('^', '.')
    """
    return MARKERS.get(shown.split(" ")[0], _OTHER_MARKER)


def _named(shown: str, names: Mapping[str, str]) -> str:
    """The first word by its name, and settings ("temperature=0.1") in words; anything else stays."""
    first, *rest = shown.split(" ")
    plain = [word for word in rest if "=" not in word]
    settings = [word.partition("=") for word in rest if "=" in word]
    said = [f"{SETTINGS.get(key, key.replace('_', ' '))} = {value}" for key, _, value in settings]
    return ", ".join([" ".join([names.get(first, first), *plain]), *said])
