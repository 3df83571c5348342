"""Parts: whole or not there, whoever writes them."""

import errno
import json

import numpy as np
import pytest
from target_rows import CARD, peaked

from rkd.errors import DataError
from rkd.targets import Writer, fits, open_part, pack, parts, remove_damaged, written


def rows(n, seed=0):
    return pack(peaked(n, 500, seed), CARD)


@pytest.fixture
def folder(tmp_path):
    """Targets of utterances a to d, in two parts of two writers."""
    for rank, names in enumerate(("ab", "cd")):
        with Writer(tmp_path, rank) as writer:
            for name in names:
                writer.add(name, rows(3, ord(name)))
    return tmp_path


def test_a_part_is_written_when_it_is_large_and_when_its_writer_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", rows(5).nbytes)
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path) as writer:
        for name, n in {"a": 3, "b": 2, "c": 1}.items():
            writer.add(name, rows(n))
        assert written(tmp_path) == {"a", "b"}
        raise KeyboardInterrupt
    assert written(tmp_path) == {"a", "b", "c"}
    assert [len(open_part(told)) for told in sorted(tmp_path.glob("*.json"))] == [5, 1]


def test_what_was_slow_to_make_is_written_before_it_is_much(tmp_path, monkeypatch):
    with Writer(tmp_path) as writer:
        writer.add("a", rows(1))
        assert not written(tmp_path)
        monkeypatch.setattr(parts.time, "monotonic", lambda: writer._since + parts.PART_SECONDS)
        writer.add("b", rows(1))
        assert written(tmp_path) == {"a", "b"}
    assert sum(part_times(tmp_path / "long", hours=100)) < 500


def part_times(folder, hours):
    """Return for each minute of hours of work whether a part was written in it."""
    folder.mkdir()
    minute, n = 0.0, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.time, "monotonic", lambda: minute)
        with Writer(folder) as writer:
            for _ in range(60 * hours):
                minute += 60.0
                writer.add("a", rows(1)[:0])
                now = len(list(folder.glob("*.json")))
                yield now > n
                n = now


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
def test_a_file_that_cannot_be_opened_is_not_damaged(folder, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, "no")

    monkeypatch.setattr(parts.np, "load", refuse)
    with pytest.raises(OSError, match="no"):
        remove_damaged(folder)
    assert written(folder) == {"a", "b", "c", "d"}


def test_parts_of_earlier_versions_are_read(folder):
    for told in folder.glob("*.json"):
        about = json.loads(told.read_text())
        del about["meaning"]
        told.write_text(json.dumps(about))
    (folder / "card.json").write_text("{}")
    assert fits(folder) and remove_damaged(folder) == []


def test_parts_are_read_with_what_they_were_written_with(folder):
    assert fits(folder) and not fits(folder.parent)
    (folder / "card.json").write_text("{}")
    assert not fits(folder)
    with Writer(folder, 2) as writer:
        writer.add("e", rows(1))
    assert fits(folder) and {path.name[:6] for path in remove_damaged(folder)} == {"part-0", "part-1"}
    assert written(folder) == {"e"}


def test_parts_of_another_time_stay(folder):
    """Also where one of them has been removed: the next has a number of its own."""
    with Writer(folder, 1) as writer:
        writer.add("e", rows(2))
    (folder / "part-1-00000.json").unlink()
    with Writer(folder, 1) as writer:
        writer.add("c", rows(1))
    assert written(folder) == {"a", "b", "e", "c"}


def test_a_damaged_part_is_named_and_can_be_removed(folder):
    [path] = folder.glob("part-1-*.npy")
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=f"{path.name} is not what was written"):
        open_part(path.with_suffix(".json"))
    path.write_bytes(bytes(data[:-100]))
    with pytest.raises(DataError, match="is damaged"):
        open_part(path.with_suffix(".json"))
    assert remove_damaged(folder) == [path] and written(folder) == {"a", "b"}
    assert remove_damaged(folder) == []


@pytest.mark.parametrize("told", ["", "[]", '{"ids": []}'])
def test_what_tells_of_a_part_may_be_damaged_too(folder, told):
    [path] = folder.glob("part-0-*.json")
    path.write_text(told)
    with pytest.raises(DataError, match=f"{path.name} is damaged"):
        written(folder)
    assert remove_damaged(folder) == [path.with_suffix(".npy")] and written(folder) == {"c", "d"}


def test_an_interrupted_part_is_not_there(folder):
    (folder / "part-0-00001.npy").write_bytes(b"half")
    assert written(folder) == {"a", "b", "c", "d"}
    assert np.load(folder / "part-0-00000.npy").dtype == CARD.row_type
    assert json.loads((folder / "part-0-00000.json").read_text())["rows"] == [3, 3]
