"""Pretrained models in Transformers' form, found without torch: local folders, and repositories of the hub.

A folder holds ``config.json``, the weights (safetensors, or a PyTorch file of plain tensors), the tokenizer and the
feature extractor's settings; a hub repository is such a folder in the hub's local cache once it is downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rkd.config import hash_files
from rkd.errors import CheckpointError, ConfigError, ResourceError

SETTINGS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "normalizer.json",
)  # fmt: skip
# What the weights may be called, best first: never a pickle where there are safetensors.
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
# What a type of model cannot do without, besides: Whisper's special tokens, languages and suppressed tokens.
ALSO_NEEDED = {"whisper": ("generation_config.json", "tokenizer_config.json")}
COMMIT = re.compile(r"[0-9a-f]{40}")
REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass
class Source:
    """Where a pretrained model lies.

    Attributes:
        folder: of its files; a snapshot in the hub's cache may still be missing.
        identity: what makes it this model and no other: the files' hash, or repository and commit.
        with_tokenizer: whether its tokenizer is wanted, too.
        repository, revision, commit: on the hub; None for a local folder.
    """

    folder: Path
    identity: dict[str, str]
    with_tokenizer: bool
    repository: str | None = None
    revision: str | None = None
    commit: str | None = None

    @property
    def complete(self) -> bool:
        """Whether all files are here."""
        return not missing_files(self.folder, self.with_tokenizer)


def find(
    source: str, revision: str, model_types: Sequence[str], key: str, may_ask: bool = True, with_tokenizer: bool = True
) -> Source:
    """Find a pretrained model: a folder, or else a hub repository.

    Args:
        source: a folder's path, or a hub id such as ``openai/whisper-tiny``.
        revision: of the hub repository: a branch, a tag or a commit. What the local cache knows is taken before the
            hub is asked, so that a result does not change when somebody else updates a branch.
        model_types: what its ``config.json`` may name.
        key: of the configuration, for errors, e.g. ``teacher.source``.
        may_ask: whether the hub may be asked for the commit of a revision.
        with_tokenizer: whether the model must have a tokenizer; not where a vocabulary of the corpus takes its place.

    Raises:
        CheckpointError: a folder lacks files of a model, holds a damaged one, or another kind.
        ConfigError: the hub may not be asked, and the cache does not know the repository.
        ResourceError: the hub cannot be reached, or has no such repository.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        check_whole(folder, f"{key}={source}", with_tokenizer)
        check_type(folder, model_types, key)
        return Source(folder, {"files": hash_files(model_files(folder))}, with_tokenizer)
    if not REPOSITORY.fullmatch(source):
        raise CheckpointError(f"{key}={source}: there is no such folder, and a hub id is written as owner/name")
    cache = hub_cache() / f"models--{source.replace('/', '--')}"
    commit = revision if COMMIT.fullmatch(revision) else _known_commit(cache, revision)
    if commit is None and may_ask:
        commit = _ask(source, revision, key)
    if commit is None:
        raise ConfigError(f"build=never, but {key}={source} is not in the hub's local cache; leave out build=never")
    identity = {"repository": source, "commit": commit}
    found = Source(cache / "snapshots" / commit, identity, with_tokenizer, source, revision, commit)
    if found.complete:
        check_whole(found.folder, f"{key}={source}", with_tokenizer)
        check_type(found.folder, model_types, key)
    return found


def check_type(folder: Path, model_types: Sequence[str], key: str) -> None:
    """Refuse a model of another kind.

    Raises:
        CheckpointError: ``config.json`` is damaged, or names another type.
    """
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read ({error}); copy the model again") from error
    if kind not in model_types:
        role = key.partition(".")[0]
        raise CheckpointError(
            f"{key}: {folder} is a {kind} model, not {' or '.join(model_types)}; choose another {role}="
        )


def hub_cache() -> Path:
    """Return the folder of the hub's local cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _known_commit(cache: Path, revision: str) -> str | None:
    try:
        return (cache / "refs" / revision).read_text().strip() or None
    except OSError:
        return None


def _ask(repository: str, revision: str, key: str) -> str:
    from huggingface_hub import HfApi

    try:
        commit = HfApi().model_info(repository, revision=revision, timeout=20).sha
    except Exception as error:  # the hub's own errors, and those of whatever HTTP library it uses
        raise ResourceError(_unreachable(repository, key, error)) from error
    if commit is None:
        raise ResourceError(f"{key}={repository}: the hub names no commit for revision {revision}")
    return commit


def download(source: Source, model_types: Sequence[str], key: str) -> None:
    """Download what a model needs into the hub's local cache, and nothing else of its repository.

    Raises:
        ResourceError: the hub cannot be reached.
        CheckpointError: the repository holds no model of ours.
    """
    from huggingface_hub import HfApi, snapshot_download

    assert source.repository and source.revision and source.commit
    try:
        held = HfApi().list_repo_files(source.repository, revision=source.commit)
        weights = next((name for name in WEIGHTS if name in held), "")
        wanted = [*SETTINGS, weights]
        if weights.endswith(".index.json"):
            wanted.append(weights.removesuffix(".index.json").replace(".", "-*-of-*."))
        snapshot_download(source.repository, revision=source.commit, allow_patterns=[name for name in wanted if name])
    except Exception as error:  # see _ask
        raise ResourceError(_unreachable(source.repository, key, error)) from error
    if missing := missing_files(source.folder, source.with_tokenizer):
        raise CheckpointError(f"{key}={source.repository} is not a whole model: the hub has no {missing[0]} of it")
    check_type(source.folder, model_types, key)
    # As the library does for a branch, though not for the commit that was fixed before: no network the next time.
    known = source.folder.parents[1] / "refs" / source.revision
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(source.commit)


def _unreachable(repository: str, key: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return (
        f"cannot get {repository} from the hub ({type(error).__name__}: {reason}); where there is no network, name a "
        f"folder that holds it: {key}=/path/to/model"
    )


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a model's weights, which need not exist, or none where no weights are known."""
    name = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        return []
    if not name.endswith(".index.json"):
        return [folder / name]
    try:
        shards = set(json.loads((folder / name).read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder / name} is damaged ({error!r}); copy the model again") from error
    return [folder / name, *(folder / shard for shard in sorted(shards))]


def check_whole(folder: Path, name: str, with_tokenizer: bool = True) -> None:
    """Refuse a folder that lacks files of its model, or whose weights are cut short.

    Args:
        folder: in Transformers' form.
        name: of the model, for errors.
        with_tokenizer: whether a tokenizer is needed, too.

    Raises:
        CheckpointError: with what is missing or damaged.
    """
    if missing := missing_files(folder, with_tokenizer):
        raise CheckpointError(
            f"{name} is not a whole model: it has no {missing[0]}; copy every file of the model there"
        )
    for file in weight_files(folder):
        check_length(file)


def check_length(file: Path) -> None:
    """Refuse a safetensors file that has another length than its header tells; other files are not looked at.

    The format: 8 bytes hold the header's length (little endian), the header is JSON with each tensor's offsets in the
    bytes that follow it (https://huggingface.co/docs/safetensors).

    Raises:
        CheckpointError: it is cut short, or no safetensors file.
    """
    if file.suffix != ".safetensors":
        return
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            n_header = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(n_header) if n_header < size else b"")
        told = 8 + n_header + max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: its header cannot be read; copy or build the model again") from error
    if size != told:
        raise CheckpointError(f"{file} is damaged: {size} bytes instead of {told}; copy or build the model again")


def missing_files(folder: Path, with_tokenizer: bool = True) -> list[str]:
    """Return what a folder lacks of a model that can be loaded and fed, most important first."""

    def any_of(*names: str) -> bool:
        return any((folder / name).is_file() for name in names)

    missing = [] if any_of("config.json") else ["config.json"]
    weights = weight_files(folder)
    missing += [path.name for path in weights if not path.is_file()] if weights else ["weights (model.safetensors)"]
    if with_tokenizer and not any_of("tokenizer.json", "vocab.json"):
        missing.append("tokenizer (tokenizer.json or vocab.json; vocabulary=corpus needs none)")
    missing += [] if any_of("preprocessor_config.json", "processor_config.json") else ["preprocessor_config.json"]
    try:
        also = ALSO_NEEDED.get(json.loads((folder / "config.json").read_text())["model_type"], ())
    except (OSError, ValueError, LookupError, TypeError):  # for check_type to say
        also = ()
    return missing + [name for name in also if not any_of(name) and (with_tokenizer or "tokenizer" not in name)]


def model_files(folder: Path) -> list[Path]:
    """Return the files of a folder that make up its model."""
    return [*(folder / name for name in SETTINGS if (folder / name).is_file()), *weight_files(folder)]
