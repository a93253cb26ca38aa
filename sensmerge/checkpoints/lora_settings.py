"""adapter_config.json of a LoRA adapter: what it sets, checked, and the rank and alpha of each module."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex  # as `re`, with a limit on time: patterns are somebody else's

from sensmerge.checkpoints.json_file import is_int, read_json

CONFIG = "adapter_config.json"
# What a configuration may set: read here, or without effect on what the trained adapter computes.
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern"}
_READ |= {"bias", "init_lora_weights", "ensure_weight_tying"}
_INERT = {"auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"}
_INERT |= {"target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"}
_INERT |= {"lora_dropout", "megatron_core", "qalora_group_size", "runtime_config", "eva_config", "loftq_config"}
# Others (pissa, olora, corda, loftq, lora_ga) train beside a base that they changed, and that is not the one on disk.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_SECONDS = 4.0  # for all patterns of an adapter: hundreds of usual ones take milliseconds
_LONGEST = 1000  # characters of one pattern


@dataclass(frozen=True)
class Settings:
    """The content of the file `path`, of the definition in checkpoints/lora.py."""

    path: Path
    content: dict[str, Any]
    patterns: dict[str, list[tuple[Any, float]]]  # "rank_pattern", "alpha_pattern" -> (compiled, value), in order
    _left: list[float] = field(default_factory=lambda: [_SECONDS])

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Of the adapter in directory `path`. FileNotFoundError without the file; ValueError naming it, and every
        setting that cannot be represented, or has a value of another type."""
        file = path / CONFIG
        if not file.is_file():
            raise FileNotFoundError(f"no {CONFIG} in {path}: without it the adapter's scale is unknown")
        content = read_json(file)
        _check_known(file, content)
        if lacking := [
            key for key, fits in (("r", _is_rank), ("lora_alpha", _is_number)) if not fits(content.get(key))
        ]:
            said = ", ".join(f"{key}={content.get(key)!r:.60}" for key in lacking)
            raise ValueError(f"{file} lacks {lacking} (got {said}): without them the adapter's scale is unknown")
        for key in ("use_rslora", "fan_in_fan_out", "ensure_weight_tying"):
            if not isinstance(content.get(key, False), bool | None):
                raise ValueError(f"{file} has {key}={content[key]!r:.60}: it is true or false")
        ranks = _compiled(file, content, "rank_pattern", _is_rank)
        return cls(file, content, {"rank": ranks, "alpha": _compiled(file, content, "alpha_pattern", _is_number)})

    def flag(self, name: str) -> bool:
        return bool(self.content.get(name))

    def of(self, module: str) -> tuple[int, float]:
        """Rank and alpha of a module by its path. TimeoutError where the patterns take too long to match."""
        return int(self._patterned("rank", module, self.content["r"])), self._patterned(
            "alpha", module, self.content["lora_alpha"]
        )

    def _patterned(self, which: str, module: str, default: float) -> float:
        """What the first pattern says that matches the end of the module's path, as a regular expression."""
        for pattern, value in self.patterns[which]:
            began = time.monotonic()
            try:
                found = pattern.match(module, timeout=max(self._left[0], 0.001))
            except TimeoutError:
                found, self._left[0] = None, 0.0
            self._left[0] -= time.monotonic() - began
            if self._left[0] <= 0:
                raise TimeoutError(
                    f"{which}_pattern takes more than {_SECONDS:g} s to match the adapter's modules: write it out as "
                    "names"
                )
            if found:
                return value
        return default


def _check_known(file: Path, content: dict[str, Any]) -> None:
    odd = [key for key in sorted(content.keys() - _READ - _INERT) if content[key]]
    wrong = [f"{key}={content[key]!r:.60}" for key in odd]
    if content.get("peft_type") != "LORA":
        wrong.insert(0, f"peft_type={content.get('peft_type')!r:.60}")
    if content.get("init_lora_weights") not in _STARTS:
        wrong.append(f"init_lora_weights={content['init_lora_weights']!r:.60} (it changes the base's weights)")
    if content.get("bias", "none") not in ("none", "all", "lora_only"):
        wrong.append(f"bias={content['bias']!r:.60}")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(
            f"{file} has {', '.join(wrong[:8])}{more}, which is more than W + scale B A: fold the adapter into its "
            "base with peft's merge_and_unload, save the model with save_pretrained and give that directory"
        )


def _compiled(file: Path, content: dict[str, Any], key: str, fits: Any) -> list[tuple[Any, float]]:
    given = content.get(key) or {}
    if not isinstance(given, dict):
        raise ValueError(f"{file} has {key}={given!r:.60}: it is a mapping of modules to numbers")
    found = []
    for pattern, value in given.items():
        if not fits(value):
            raise ValueError(f"{file} has {key}[{pattern!r:.80}]={value!r:.60}: that is no {key.partition('_')[0]}")
        if len(pattern) > _LONGEST:
            raise ValueError(f"{file} has a {key} of {len(pattern):,} characters, {_LONGEST} are allowed")
        try:
            found.append((regex.compile(rf"(.*\.)?({pattern})$"), value))
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise ValueError(f"{file} has {key}[{pattern!r:.80}], no regular expression ({error})") from None
    return found


def _is_rank(value: Any) -> bool:
    return is_int(value, 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value)
