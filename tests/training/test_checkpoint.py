"""Checkpoints: a kill at any point leaves a whole one, damage is found, a full disk is said."""

import contextlib
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch

from rkd.errors import CheckpointError, ResourceError
from rkd.training import checkpoint


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program handles it."""


def state(step, n=10):
    return {"step": step, "weights": {"w": torch.full((n,), float(step))}, "rng": [torch.arange(3)]}


def step_of(folder):
    checkpoint.recover(folder)
    loaded = checkpoint.load(folder)
    if loaded is None:
        return None
    assert torch.equal(loaded["weights"]["w"], torch.full((10,), float(loaded["step"])))
    return loaded["step"]


def test_what_was_saved_is_loaded(tmp_path):
    assert checkpoint.load(tmp_path / "last") is None
    checkpoint.save(tmp_path / "last", state(1))
    checkpoint.save(tmp_path / "last", state(2))
    assert step_of(tmp_path / "last") == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]  # nothing of the old one is left


def kill_at(monkeypatch, k):
    """Kill the k-th operation on files, counted from 1: before it, or half way through a write or a removal."""
    count = 0

    def wrap(owner, name, halfway=None):
        original = getattr(owner, name)

        def operation(*args, **kwargs):
            nonlocal count
            count += 1
            if count == k:
                raise Killed
            count += 1
            if count == k:
                if halfway:
                    halfway(*args)
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, operation)

    def half_of_the_state(value, file, *rest):
        Path(file).write_bytes(b"half")

    def half_of_the_text(path, text, *rest):
        with path.open("w") as file:
            file.write(text[: len(text) // 2])

    def half_of_the_folder(path, *rest, **kwargs):
        files = sorted(Path(path).iterdir()) if Path(path).exists() else []
        for file in files[:1]:
            file.unlink()

    wrap(torch, "save", half_of_the_state)
    wrap(Path, "write_text", half_of_the_text)
    wrap(shutil, "rmtree", half_of_the_folder)
    for name in ("rename", "mkdir"):
        wrap(Path, name)
    wrap(checkpoint, "_sync")
    return lambda: count


def survives(folder, before, k, monkeypatch):
    """Save over ``before`` with a kill at k; return whether the kill came."""
    with monkeypatch.context() as patch:
        counted = kill_at(patch, k)
        with contextlib.suppress(Killed):
            checkpoint.save(folder, state(2))
        killed = counted() >= k
    assert step_of(folder) in (before, 2)
    # The run goes on: the next save and load find nothing in their way.
    checkpoint.save(folder, state(3))
    assert step_of(folder) == 3
    return killed


@pytest.mark.parametrize("before", [None, 1])
def test_a_kill_at_any_point_leaves_a_whole_checkpoint(tmp_path, monkeypatch, before):
    k = 1
    while True:
        folder = tmp_path / str(k) / "last"
        folder.parent.mkdir()
        if before:
            checkpoint.save(folder, state(before))
        if not survives(folder, before, k, monkeypatch):
            break
        k += 1
    assert k > 15  # every operation was met


def damage_bit(folder):
    data = bytearray((folder / checkpoint.STATE).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / checkpoint.STATE).write_bytes(data)


DAMAGES = {
    "a flipped bit": damage_bit,
    "a cut file": lambda f: (f / checkpoint.STATE).write_bytes((f / checkpoint.STATE).read_bytes()[:-7]),
    "no state": lambda f: (f / checkpoint.STATE).unlink(),
    "no manifest": lambda f: (f / checkpoint.MANIFEST).unlink(),
    "a broken manifest": lambda f: (f / checkpoint.MANIFEST).write_text("{"),
    "an empty manifest": lambda f: (f / checkpoint.MANIFEST).write_text("{}"),
    "a file in its place": lambda f: (shutil.rmtree(f), f.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(tmp_path, damage):
    checkpoint.save(tmp_path / "last", state(1))
    DAMAGES[damage](tmp_path / "last")
    with pytest.raises(CheckpointError, match=r"last.*delete"):
        checkpoint.load(tmp_path / "last")


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Surprise:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    checkpoint.save(tmp_path / "last", {"step": Surprise()})
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        checkpoint.load(tmp_path / "last")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_is_said_and_the_old_checkpoint_stays(tmp_path):
    checkpoint.save(tmp_path / "last", state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # no file may grow beyond this
    try:
        with pytest.raises(ResourceError, match="cannot write the checkpoint"):
            checkpoint.save(tmp_path / "last", state(2, n=1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert step_of(tmp_path / "last") == 1
    checkpoint.save(tmp_path / "last", state(3))
    assert step_of(tmp_path / "last") == 3


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        checkpoint.save(tmp_path / "file" / "last", state(1))


def test_the_manifest_tells_the_size(tmp_path):
    checkpoint.save(tmp_path / "last", state(1))
    manifest = json.loads((tmp_path / "last" / checkpoint.MANIFEST).read_text())
    assert manifest["bytes"] == (tmp_path / "last" / checkpoint.STATE).stat().st_size
