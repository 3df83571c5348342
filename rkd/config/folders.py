"""The folders of YAML groups: rkd's own, and those that RKD_CONF adds."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from rkd.errors import ConfigError

GROUPS = (
    "data", "noise", "effects", "teacher", "student", "denoiser", "loss", "trainer", "evaluate", "launcher", "sweeper",
    "experiment",
)  # fmt: skip


def conf_folders() -> list[Path]:
    """Return the folders of YAML groups, first wins: those in RKD_CONF, then rkd's own."""
    package = Path(__file__).resolve().parents[1]
    own = next((f for f in (package / "conf", package.parent / "conf") if (f / "config.yaml").is_file()), None)
    if own is None:
        raise ConfigError(f"rkd's own YAML files are missing beside {package}: install rkd again")
    users = [Path(f).expanduser().absolute() for f in os.environ.get("RKD_CONF", "").split(os.pathsep) if f]
    for folder in users:
        if not folder.is_dir():
            raise ConfigError(f"RKD_CONF names {folder}, which is not a folder")
    return [*users, own]


def groups() -> list[str]:
    own = {f.name for folder in conf_folders() for f in folder.iterdir() if f.is_dir() and any(f.glob("*.yaml"))}
    return [g for g in GROUPS if g in own] + sorted(own - set(GROUPS))


def group_files(group: str) -> dict[str, Path]:
    """Return a group's choices, sorted, and the file of each; names that start with `_` are parts, not choices."""
    files: dict[str, Path] = {}
    for folder in conf_folders():
        for file in (folder / group).glob("*.yaml"):
            if not file.name.startswith("_"):
                files.setdefault(file.stem, file)
    return dict(sorted(files.items()))


def described(group: str) -> list[dict[str, Any]]:
    """Return what each YAML file of a group says by itself, parts too; the user's first."""
    return [_read(file) for folder in conf_folders() for file in sorted((folder / group).glob("*.yaml"))]


@functools.cache
def _read(file: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}


def families() -> dict[str, str]:
    """Return the classes of the model families that YAML files describe, by the families' names."""
    nodes = [node for group in ("student", "teacher", "shape") for node in described(group)]
    # The last of a name counts, and the user's come first.
    return {node["family"]: node["_target_"] for node in reversed(nodes) if {"family", "_target_"} <= node.keys()}
