"""Any of the forms that a model comes in, as one thing to read tensors from: what a merge asks of its inputs."""

from __future__ import annotations

from pathlib import Path

from sensmerge.checkpoints import lora, onebit, reader, torch_bin
from sensmerge.checkpoints.lora import Adapter
from sensmerge.checkpoints.onebit import OneBit
from sensmerge.checkpoints.reader import Reader, Source
from sensmerge.checkpoints.torch_bin import Pickled

UNDERSTOOD = (
    f"{reader.SINGLE} or {reader.INDEX} with its shards, {torch_bin.SINGLE} or pytorch_model-*.bin, "
    f"a LoRA adapter ({lora.CONFIG} with {' or '.join(lora.WEIGHTS)}), {onebit.FILE}, or one .safetensors file"
)


def open_source(path: Path, base: Source | None = None) -> Source:
    """What lies at `path`: whole weights, safetensors before .bin, or else an adapter or a one-bit task vector.

    base: what these two are on top of; it stays its owner's to close. The result is a context manager.

    Raises FileNotFoundError where nothing understood is there, saying what is; ValueError for one of them without base,
    and whatever opening a broken checkpoint raises.
    """
    if path.is_file() and path.suffix == ".safetensors":
        if path.name.startswith("adapter_"):
            raise ValueError(f"{path} holds only an adapter's factors: give its directory, with {lora.CONFIG}")
        return Reader(path)
    if not path.is_dir():
        what = f"{path} is no directory" if path.exists() else f"nothing is at {path}"
        raise FileNotFoundError(f"{what}; what can be read is a directory with {UNDERSTOOD}")
    reader.check_parts(path)
    if (path / reader.INDEX).is_file() or (path / reader.SINGLE).is_file():
        return Reader(path)
    if (path / torch_bin.INDEX).is_file() or next(path.glob("pytorch_model*.bin"), None):
        return Pickled(path)
    if is_adapter(path):
        if base is None:
            raise ValueError(f"{path} holds a LoRA adapter, and no base is given to put it on; a base is a whole model")
        return Adapter(path, base)
    if (path / onebit.FILE).is_file():
        if base is None:
            raise ValueError(f"{path} holds a one-bit task vector, and no base is given to add it to")
        return OneBit(path, base)
    found = sorted(entry.name for entry in path.iterdir())
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    raise FileNotFoundError(f"no weights in {path} (found {found[:8]}{more}); what can be read is {UNDERSTOOD}")


def on_base(path: Path) -> bool:
    """Whether what is there is only a change to its base: an adapter, or a one-bit task vector."""
    return is_adapter(path) or (path / onebit.FILE).is_file()


def is_adapter(path: Path) -> bool:
    """Whether the directory holds an adapter and no whole weights: its tensors then depend on its base, too."""
    if not path.is_dir() or next(path.glob("model*.safetensors"), None) or next(path.glob("pytorch_model*.bin"), None):
        return False
    return any((path / name).is_file() for name in (lora.CONFIG, *lora.WEIGHTS))
