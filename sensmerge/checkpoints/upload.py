"""A written checkpoint to the Hugging Face hub. Tested against a stand-in only: never run against the hub itself."""

from __future__ import annotations

from pathlib import Path

_NEEDED = ("config.json", "merge.json", "README.md")


def listing(checkpoint: Path) -> dict[str, int]:
    """Name -> bytes of every file that would be uploaded.

    Raises FileNotFoundError for a directory that no merge of ours finished.
    """
    found = (
        {p.relative_to(checkpoint).as_posix(): p.stat().st_size for p in sorted(checkpoint.rglob("*")) if p.is_file()}
        if checkpoint.is_dir()
        else {}
    )
    missing = [name for name in _NEEDED if name not in found]
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
