"""Hashes change with what matters, and with nothing else."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rkd.config import fingerprint, fingerprints, hash_files

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def same(a, b):
    """Whether two trees are equal, True not being 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


@given(values, values)
def test_fingerprints_are_equal_where_values_are(a, b):
    assert (fingerprint(a) == fingerprint(b)) == same(a, b)


def test_fingerprint_ignores_order_of_keys_and_kind_of_number_and_container():
    assert fingerprint({"a": 1, "b": [2.0]}) == fingerprint({"b": (2,), "a": 1.0})
    assert fingerprint(OmegaConf.create({"a": [1]})) == fingerprint({"a": [1]})
    assert len(fingerprint(None)) == 64


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "a"
    (folder / "dog").mkdir(parents=True)
    for i in range(3):
        path = folder / "dog" / f"{i}.wav"
        path.write_bytes(bytes([i]) * 100)
        os.utime(path, (1e9, 1e9))
    return folder


def all_files(folder):
    return [f for f in folder.rglob("*") if f.is_file()]


def test_hash_of_files_is_of_contents_and_relative_names(files):
    before = hash_files(all_files(files))
    assert hash_files(reversed(all_files(files))) == before
    moved = files.rename(files.with_name("elsewhere"))
    assert hash_files(all_files(moved)) == before
    (moved / "dog" / "0.wav").write_bytes(b"x" * 100)
    changed = hash_files(all_files(moved))
    assert changed != before
    (moved / "dog" / "0.wav").rename(moved / "dog" / "9.wav")
    assert hash_files(all_files(moved)) not in (before, changed)


def test_file_hashes_are_kept_by_path_size_and_time(files, monkeypatch):
    read = []
    hash_file = fingerprints._hash_file
    monkeypatch.setattr(fingerprints, "_hash_file", lambda path: read.append(path) or hash_file(path))
    before = hash_files(all_files(files))
    assert hash_files(all_files(files)) == before and len(read) == 3
    os.utime(files / "dog" / "1.wav", (1e9 + 1, 1e9 + 1))
    assert hash_files(all_files(files)) == before and len(read) == 4
    recent = files / "dog" / "2.wav"
    recent.write_bytes(b"new")
    hash_files(all_files(files))
    hash_files(all_files(files))
    assert read.count(str(recent)) == 3, "a file that has just changed is read again"


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty", "folder", "readonly"])
def test_a_cache_that_cannot_be_used_costs_time_and_nothing_else(files, damage, monkeypatch):
    before = hash_files(all_files(files))
    cache = fingerprints._cache_file()
    if damage == "missing":
        cache.unlink()
    elif damage == "garbage":
        cache.write_bytes(b"garbage" * 1000)
    elif damage == "empty":
        cache.write_bytes(b"")
    elif damage == "folder":
        cache.unlink()
        cache.mkdir()
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert hash_files(all_files(files)) == before
    assert hash_files(all_files(files)) == before
    if damage == "garbage":
        assert cache.read_bytes().startswith(b"SQLite"), "made anew"


def test_no_file_is_read_a_second_time(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read = []
    hash_file = fingerprints._hash_file
    monkeypatch.setattr(fingerprints, "_hash_file", lambda path: read.append(path) or hash_file(path))
    paths = [tmp_path / f"{i}.wav" for i in range(20)]
    for path in paths:
        path.write_bytes(b"x")
        os.utime(path, (1e9, 1e9))
    first = hash_files(paths)
    assert len(read) == 20
    assert hash_files(paths) == first and len(read) == 20
