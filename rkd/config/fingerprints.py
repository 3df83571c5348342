"""Hashes of configuration and of files: what a run folder's name and every reuse of a result rest on."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

# A file that changed this recently may change again within the resolution of its time stamp.
_SETTLED_NS = 2_000_000_000
_CHUNK = 500  # files looked up at a time


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


def hash_inputs(inputs: Iterable[Path | str]) -> str:
    """Return the SHA-256, in 64 hex digits, of files by their content (see `hash_files`) and of texts as they are."""
    texts: list[str] = []

    def files() -> Iterator[Path]:
        for one in inputs:
            if isinstance(one, str):
                texts.append(one)
            else:
                yield one

    of_files = hash_files(files())
    return fingerprint([of_files, texts]) if texts else of_files


def hash_files(paths: Iterable[str | Path]) -> str:
    """Return the SHA-256, in 64 hex digits, of files' contents and of their names relative to their common folder.

    The order of `paths` does not matter, nor where the common folder lies. The hash of each file is kept in the user's
    cache by (path, size, modification time), so that a second call reads no file. A file that is not there, such as a
    link that leads nowhere, counts with its name. OSError for an unreadable file.
    """
    files = sorted(os.path.abspath(p).replace("//", "/") for p in paths)  # two at the start would stay
    if not files:
        return hashlib.sha256().hexdigest()
    common = files[0] if len(files) == 1 else os.path.commonpath([files[0], files[-1]])  # all others lie between
    total = hashlib.sha256()
    for start in range(0, len(files), _CHUNK):
        chunk = files[start : start + _CHUNK]
        for path, file_hash in zip(chunk, _file_hashes(chunk), strict=True):
            name = path[len(common) :].lstrip(os.sep).replace(os.sep, "/") or "."
            total.update(f"{name}\0{file_hash}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _file_hashes(files: list[str]) -> list[str]:
    stats = {}
    for path in files:
        with suppress(OSError, ValueError):  # it is not there
            stats[path] = os.stat(path)
    keys = {path: (os.fsencode(path), s.st_size, s.st_mtime_ns) for path, s in stats.items()}
    known = _read_cache(list(keys.values()))
    found = {path: known.get(key) or _hash_file(path) for path, key in keys.items()}
    settled = time.time_ns() - _SETTLED_NS
    _write_cache([(*key, found[path]) for path, key in keys.items() if key not in known and key[2] < settled])
    return [found.get(path, "missing") for path in files]


def _hash_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache_file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.path.abspath(folder)) / "rkd" / "hashes.sqlite"


def _read_cache(keys: list[tuple[bytes, int, int]]) -> dict[tuple[bytes, int, int], str]:
    """Return the known hashes; a cache that is missing or cannot be read knows none, a damaged one is removed."""
    cache = _cache_file()
    if not cache.is_file():
        return {}
    marks = ",".join("?" * len(keys))
    try:
        with closing(sqlite3.connect(f"{cache.as_uri()}?mode=ro", uri=True, timeout=5)) as db:
            rows = db.execute(
                f"SELECT path, size, mtime_ns, hash FROM files WHERE path IN ({marks})", [key[0] for key in keys]
            )
            return {(path, size, mtime_ns): value for path, size, mtime_ns, value in rows if len(value) == 64}
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
