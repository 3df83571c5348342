"""Checkpoints: written whole or not at all, verified when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from rkd.errors import CheckpointError, ResourceError

STATE = "state.pt"
MANIFEST = "manifest.json"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint folder in place of an earlier one; a kill at any point leaves one of the two whole.

    Raises:
        ResourceError: the disk is full or not writable.
    """
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        torch.save(state, new / STATE)
        manifest = {"sha256": _sha256(new / STATE), "bytes": (new / STATE).stat().st_size}
        draft = new / (MANIFEST + ".draft")
        draft.write_text(json.dumps(manifest))
        _sync(new / STATE)
        _sync(draft)
        draft.rename(new / MANIFEST)  # where there is a manifest, the checkpoint is whole
        _sync(new)
    except (OSError, RuntimeError) as error:  # torch.save on a full disk raises RuntimeError
        raise ResourceError(
            f"cannot write the checkpoint {folder} ({error}); free some disk space and run the command again"
        ) from error
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put a checkpoint in its place where a kill came between the two renames; for one process alone."""
    for name in (".new", ".old"):
        candidate = folder.with_name(folder.name + name)
        if not folder.exists() and (candidate / MANIFEST).exists():
            candidate.rename(folder)


def load(folder: Path) -> dict[str, Any] | None:
    """Return the state that ``save`` wrote, or None where there is none.

    Raises:
        CheckpointError: the files do not match their manifest.
    """
    if not folder.exists():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        damaged = _sha256(folder / STATE) != manifest["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is incomplete ({error}); delete it to start this stage again") from error
    if damaged:
        raise CheckpointError(
            f"{folder / STATE} does not match its checksum; delete {folder} to start this stage again"
        )
    return torch.load(folder / STATE, map_location="cpu", weights_only=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
