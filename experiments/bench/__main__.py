"""All benches under one name: `python -m experiments.bench NAME ...`; without a name, what there is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

BENCHES = {
    "merge": "experiments.bench.merge",
    "sweep": "experiments.bench.sweep",
    "multirun": "experiments.bench.multirun",
    "sensitivity": "experiments.bench.sensitivity",
    "overhead": "experiments.bench.overhead",
    "parity": "experiments.bench.parity",
    "page": "experiments.bench.page",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench named first with what follows; its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in BENCHES:
        lines = "\n".join(f"  {name:<12} {_summary(module)}" for name, module in BENCHES.items())
        sys.exit(f"usage: python -m experiments.bench BENCH ...\n{lines}")
    return importlib.import_module(BENCHES[words[0]]).main(words[1:])


def _summary(module: str) -> str:
    return (importlib.import_module(module).__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
