"""Models by name: a directory, or a repository on the Hugging Face hub, fetched into its cache; and the way back.

Uploading was tested against a stand-in only, never against the hub itself.
"""

from __future__ import annotations

from pathlib import Path

from sensmerge.checkpoints.reader import COMPANIONS

_WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")
_OLD_WEIGHTS = ("pytorch_model*.bin", "adapter_model.bin")
_MARKS = ("config.json", "adapter_config.json")
_MERGED = ("config.json", "merge.json", "README.md")  # what a finished merge has beside its weights


def locate(place: str | Path) -> Path:
    """The directory that `place` names: itself, or, for "owner/name" or "owner/name@revision", a copy of the hub's.

    Raises FileNotFoundError where there is neither, or the hub is switched off and its cache lacks it.
    """
    path = Path(place)
    if path.exists():
        return path
    if problem := problem_of(place):
        raise FileNotFoundError(problem)
    name, _, revision = str(place).partition("@")
    return fetch(name, revision or None)


def problem_of(place: str | Path) -> str | None:
    """Why `locate` would fail before it asks the network; None if nothing is known to be wrong."""
    if Path(place).exists():
        return None
    name, _, revision = str(place).partition("@")
    if isinstance(place, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return f"nothing is at {place}; give a model's directory, or owner/name[@revision] of one on the hub"
    if reachable(name, revision or None):
        return None
    return (
        f"{name} is no directory here, is not in the Hugging Face cache, and the hub is switched off (HF_HUB_OFFLINE); "
        "allow the network, or give a path"
    )


def reachable(name: str, revision: str | None) -> bool:
    """Whether the hub may be asked, or its cache has something of the model."""
    import huggingface_hub
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return True
    return any(
        isinstance(huggingface_hub.try_to_load_from_cache(name, mark, revision=revision), str) for mark in _MARKS
    )


def cached(name: str, revision: str | None) -> Path | None:
    """A hub model's directory in the Hugging Face cache, though files of it may be missing; None without one."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
    except FileNotFoundError:
        return None


def fetch(name: str, revision: str | None) -> Path:
    """A hub model's directory, downloaded if need be: safetensors where the repository has them.

    FileNotFoundError, with what to do about it, where the hub cannot be reached or does not give the model away.
    """
    try:
        folder = _snapshot(name, revision, _WEIGHTS)
        if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
            # The commit of the first call, so that a branch which moves meanwhile cannot mix two versions.
            _snapshot(name, folder.name, _OLD_WEIGHTS)
    except failures() as error:
        where = name if revision is None else f"{name}@{revision}"
        said = str(error).strip().partition("\n")[0]
        # What the hub's client was doing when the connection failed is pages long, and helps nobody.
        raise FileNotFoundError(
            f"{where} could not be fetched from the Hugging Face hub ({type(error).__name__}: {said}); "
            f"{_advice(error)}, or give the path of a copy"
        ) from None
    return folder


def failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where the hub cannot be reached, refuses, or has no such thing."""
    from huggingface_hub import errors

    # The latter is its HTTP client's, whichever that is in this version.
    return (OSError, errors.HTTPError)  # pyright: ignore[reportPrivateImportUsage]


def _snapshot(name: str, revision: str | None, weights: tuple[str, ...]) -> Path:
    import huggingface_hub

    patterns = [*(f"*{suffix}" for suffix in COMPANIONS), *weights]
    return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))


def _advice(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "ask for access on the model's page, then `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return "check the name and revision (of a private model: `hf auth login`)"
    return "connect this machine to the network"


def identify(path: Path) -> tuple[str, str] | None:
    """(owner/name, commit) of a directory in the Hugging Face cache; None for any other.

    >>> identify(Path("/cache/hub/models--a--b-c/snapshots/0f1e"))
    ('a/b-c', '0f1e')
    """
    if path.parent.name != "snapshots" or not path.parent.parent.name.startswith("models--"):
        return None
    return path.parent.parent.name.removeprefix("models--").replace("--", "/"), path.name


def listing(checkpoint: Path) -> dict[str, int]:
    """Name -> bytes of every file that would be uploaded.

    Raises FileNotFoundError for a directory that no merge of ours finished.
    """
    found = (
        {p.relative_to(checkpoint).as_posix(): p.stat().st_size for p in sorted(checkpoint.rglob("*")) if p.is_file()}
        if checkpoint.is_dir()
        else {}
    )
    missing = [name for name in _MERGED if name not in found]
    if not any(name.endswith(".safetensors") for name in found):
        missing.append("*.safetensors")
    if missing:
        raise FileNotFoundError(
            f"{checkpoint} is no checkpoint that `python -m sensmerge merge` finished: {', '.join(missing)} not there"
        )
    return found


def push(checkpoint: Path, repo: str, *, private: bool = True) -> str:
    """Upload every file of `checkpoint` in one commit; the commit's address.

    The repository is made if it does not exist, private unless told; one that exists keeps its visibility. The token is
    huggingface_hub's own (`hf auth login`, or HF_TOKEN). Raises ValueError for a bad name, and what the hub raises.
    """
    import huggingface_hub

    files = listing(checkpoint)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"--repo {repo!r}: write OWNER/NAME")
    api = huggingface_hub.HfApi()
    api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repo, repo_type="model", folder_path=checkpoint, allow_patterns=list(files),
        commit_message="Merged by sensmerge",
    )  # fmt: skip
    return str(done)
