"""What went wrong, as a person at a terminal wants to read it: a message, no stack of Hydra's frames."""

from __future__ import annotations

import difflib
import itertools
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CONF = Path(__file__).resolve().parents[2] / "conf"
# What is raised on purpose: its text says what, where and what to do. Anything else is a fault of ours.
_REFUSALS = (ValueError, OSError, KeyError)


def message(error: BaseException, arguments: Sequence[str]) -> str:
    """What to print of an exception that ended `python run.py ARGUMENTS`.

    A fault of ours comes with its traceback, unless a run's error.txt has it already (see `pipeline`).
    """
    kind = type(error).__name__
    if kind == "OverrideParseException":
        return _unreadable(arguments) or _in_a_line(str(error))
    if kind in ("ConfigCompositionException", "ConfigAttributeError", "ConfigKeyError", "MissingConfigException"):
        return _composition(error, arguments)
    if type(error).__module__.startswith("omegaconf."):  # a value that is missing, or made of another that is not there
        return _in_a_line(str(error))
    if kind == "InstantiationException":
        return "\n".join(_invalid(error)) or _in_a_line(str(error))
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    notes = getattr(error, "__notes__", [])
    refused = isinstance(error, _REFUSALS) or kind == "SweepFailed"
    if refused or notes:
        return "\n".join([text if refused else f"{kind}: {text}", *notes])
    return "".join(traceback.format_exception(error)).rstrip()


def _unreadable(arguments: Sequence[str]) -> str | None:
    """A sentence on the first group that is given a dictionary, which Hydra's grammar or its composition refuses."""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        group = name.lstrip("+~")
        if equals and value.startswith("{") and (CONF / group).is_dir():
            known = ", ".join(_choices(group))
            return (
                f"{argument}: {group} is chosen by the name of a yaml ({known}), and its settings follow one by one, "
                f"as in {group}=NAME {group}.SETTING=VALUE"
            )
    return None


def _composition(error: BaseException, arguments: Sequence[str]) -> str:
    """Misspelt settings with what there is instead; anything else in Hydra's own words."""
    for argument in arguments:
        if argument.startswith("-"):
            continue
        name, equals, _ = argument.partition("=")
        key = name.lstrip("~")
        if "interpolation" in str(error) and argument == "~scaling":
            return f"{argument}: no scaling: every run has one; no rule at all is scaling=uniform"
        if "interpolation" in str(error) and key in ("model", "merger"):
            return f"{argument}: every run has one {key}, by the name of a yaml: {', '.join(_choices(key))}"
        if key.startswith("launcher."):
            return f"{argument}: settings of a launcher are hydra's: hydra.{argument}"
        if equals and not key.startswith("+") and f"'{key}'" in str(error):
            return _misspelt(key, arguments) or _in_a_line(str(error))
    return _unreadable(arguments) or _in_a_line(str(error))


def _in_a_line(text: str) -> str:
    """
    >>> _in_a_line("In 'config': Could not find 'merger/tie'\\n\\nAvailable options in 'merger':\\n\\tdare\\n\\tties")
    "In 'config': Could not find 'merger/tie'; there are dare, ties"
    """
    said, _, options = text.partition("Config search path:")[0].partition("Available options in ")
    known = options.split()[1:]
    return " ".join(said.split()) + (f"; there are {', '.join(known)}" if known else "")


def _misspelt(key: str, arguments: Sequence[str]) -> str | None:
    """That `key` is no setting, and which there are beside where it would be; None if it is one."""
    from omegaconf import DictConfig

    if "." not in key and (CONF / key).is_dir():
        return None
    settings: Any = _composed(arguments, without=key)
    *above, last = key.split(".")
    place = ""
    for part in above:
        if not isinstance(settings, DictConfig) or part not in settings:
            last = part
            break
        settings, place = settings[part], f"{place}.{part}" if place else part
    if not isinstance(settings, DictConfig) or last in settings:
        return None
    known = sorted(str(name) for name in settings if not str(name).startswith("_"))
    near = difflib.get_close_matches(last, known, n=1)
    hint = f"; did you mean {'.'.join(filter(None, [place, near[0]]))}?" if near else ""
    return f"{key}: there is no setting {last!r}{f' in {place}' if place else ''}, which has {', '.join(known)}{hint}"


def _composed(arguments: Sequence[str], *, without: str) -> Any:
    """The configuration of these arguments, but for the misspelt one and settings of single jobs."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    words = [word for word in arguments if "=" in word and word.partition("=")[0] != without and "," not in word]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return compose("config", overrides=words)
        except Exception:  # another word is wrong too; what the groups have by default says enough
            return compose("config")


def _invalid(error: BaseException) -> Iterator[str]:
    """One sentence for each value that a setting does not take, from pydantic's account of it."""
    cause = error.__cause__
    details = getattr(cause, "errors", None)
    _, _, key = str(error).rpartition("full_key: ")
    group = key.strip() if "full_key: " in str(error) else ""
    if details is None:
        yield _in_a_line(f"{group}: {cause}" if group and cause else str(cause or error))
        return
    for place, faults in itertools.groupby(details(include_url=False), key=lambda fault: _place(group, fault["loc"])):
        fault, *others = faults
        text = " or ".join(one["msg"].removeprefix("Value error, ") for one in (fault, *others))
        given = f" (got {fault['input']!r})" if isinstance(fault["input"], (str, int, float, type(None))) else ""
        yield f"{place or 'configuration'}: {text[:1].lower()}{text[1:]}{given}"


def _place(group: str, loc: Sequence[Any]) -> str:
    """The setting at fault. Where it may be of several types, pydantic's name for the one that was tried is no part."""
    named = itertools.takewhile(lambda part: isinstance(part, int) or re.fullmatch(r"\w+", part), loc)
    tagged = [part for part in named if part not in ("constrained-int", "int", "str", "bool")]
    return ".".join(str(part) for part in (group, *tagged) if part != "")


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))
