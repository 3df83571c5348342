"""Hashes of configuration and of files: what a run folder's name and every reuse of a result rest on."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

# A file that changed this recently may change again within the resolution of its time stamp.
_SETTLED_NS = 2_000_000_000


def fingerprint(value: Any) -> str:
    """Return the SHA-256, in 64 hex digits, of a tree of plain values, the same for 1 and 1.0 and any key order."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if hasattr(value, "_get_root"):  # a DictConfig or ListConfig
        from omegaconf import OmegaConf

        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def hash_files(paths: Iterable[str | Path]) -> str:
    """Return the SHA-256, in 64 hex digits, of files' contents and of their names relative to their common folder.

    The order of `paths` does not matter, nor where the common folder lies. The hash of each file is kept in the user's
    cache by (path, size, modification time), so that a second call reads no file. OSError for an unreadable file.
    """
    files = sorted(os.path.abspath(p) for p in paths)
    if not files:
        return hashlib.sha256().hexdigest()
    common = files[0] if len(files) == 1 else os.path.commonpath(files)
    hashes = _file_hashes(files)
    total = hashlib.sha256()
    for path in files:
        total.update(
            f"{Path(os.path.relpath(path, common)).as_posix()}\0{hashes[path]}\n".encode("utf-8", "surrogateescape")
        )
    return total.hexdigest()


def _file_hashes(files: list[str]) -> dict[str, str]:
    stats = {path: os.stat(path) for path in files}
    keys = {path: (os.fsencode(path), s.st_size, s.st_mtime_ns) for path, s in stats.items()}
    known = _read_cache(keys)
    found = {path: known.get(path) or _hash_file(path) for path in files}
    settled = time.time_ns() - _SETTLED_NS
    _write_cache(
        [(*keys[path], found[path]) for path in files if path not in known and stats[path].st_mtime_ns < settled]
    )
    return found


def _hash_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache_file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.path.abspath(folder)) / "rkd" / "hashes.sqlite"


def _read_cache(keys: dict[str, tuple[bytes, int, int]]) -> dict[str, str]:
    """Return the known hashes; a cache that is missing or cannot be read knows none, a damaged one is removed."""
    cache = _cache_file()
    if not cache.is_file():
        return {}
    known = {}
    try:
        with closing(sqlite3.connect(f"{cache.as_uri()}?mode=ro", uri=True, timeout=5)) as db:
            for path, key in keys.items():
                row = db.execute("SELECT hash FROM files WHERE path=? AND size=? AND mtime_ns=?", key).fetchone()
                if row and len(row[0]) == 64:
                    known[path] = row[0]
        return known
    except sqlite3.OperationalError:  # locked, or without its table
        return {}
    except (sqlite3.DatabaseError, TypeError):  # not a database any more
        with suppress(OSError):
            cache.unlink(missing_ok=True)
        return {}


def _write_cache(rows: list[tuple[bytes, int, int, str]]) -> None:
    """Add hashes in one transaction; a cache that cannot be written costs time later, and nothing else."""
    if not rows:
        return
    cache = _cache_file()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(cache, timeout=5)) as db, db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, hash TEXT)"
            )
            db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
    except (OSError, sqlite3.Error):
        pass
