"""From a source to a store: what is left out and why, and the same result from any number of processes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from recordings import Listed, one_each, save, spoken, tone

from rkd.data import corpus
from rkd.data.corpus import write_store
from rkd.data.sources import Rejected
from rkd.data.sources.files import Folder
from rkd.data.store import SPLITS, Store, part_path
from rkd.errors import DataError


def test_write_store_rejects_with_reasons(tmp_path):
    source = Listed(
        *one_each(),
        spoken("short", waveform=tone(0.05)),
        spoken("long", waveform=tone(3.0)),
        spoken("silent", waveform=np.zeros(16000, np.float32)),
        spoken("base-train"),
        spoken("no-text", text=None),
        spoken("no-words", text="..."),
        Rejected("broken", "cannot be decoded as audio (why)"),
    )
    summary = write_store(source, tmp_path, max_seconds=2)
    reasons = {row["id"]: row["reason"] for row in map(json.loads, (tmp_path / "rejected.jsonl").open())}
    assert set(reasons) == {"short", "long", "silent", "base-train", "no-text", "no-words", "broken"}
    assert summary["rejected"] == {
        "too short": 1,
        "too long": 1,
        "silent": 1,
        "id is not unique": 1,
        "text without words": 1,
        "cannot be decoded as audio": 1,
        "not used for want of text": 1,
    }
    assert summary["has_text"] and summary == json.loads((tmp_path / "summary.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "part-00000.arrow", "part-00000.rejected.jsonl", "rejected.jsonl", "summary.json"
    ]  # fmt: skip


def test_a_source_without_recordings(tmp_path):
    with pytest.raises(DataError, match="holds no recordings"):
        write_store(Listed(), tmp_path)


def test_of_each_source_and_split_the_first_are_taken(tmp_path):
    def of(source):
        return [replace(spoken(f"{source}{n}{s}", s), source=source) for s in SPLITS for n in range(3)]

    write_store(Listed(*of("a"), Rejected("x", "silent"), *of("b")), tmp_path, max_utterances=2)
    assert list(Store.open(tmp_path, "train").ids) == ["a0train", "a1train", "b0train", "b1train"]
    assert [len(Store.open(tmp_path, split)) for split in SPLITS] == [4, 4, 4]


def test_progress_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PART", 1)
    told = []
    monkeypatch.setattr(corpus, "track", lambda items, *a, done, **b: (told.append(done), *items)[1:])
    source = Listed(*one_each())
    write_store(source, tmp_path)
    part_path(tmp_path, 1).unlink()
    write_store(source, tmp_path)
    assert told == [0, 2] and part_path(tmp_path, 1).exists()


def test_a_corpus_without_text_is_unlabelled(tmp_path):
    summary = write_store(Listed(*one_each(text=None)), tmp_path)
    assert summary["has_text"] is False and summary["rejected"] == {}
    assert list(Store.open(tmp_path, "test").texts) == [None]


def test_write_store_resamples_and_measures(tmp_path):
    write_store(Listed(*one_each(), spoken("eight", text="A, B", waveform=tone(1, 8000), rate_hz=8000)), tmp_path)
    store = Store.open(tmp_path, "train")
    assert list(store.ids) == ["base-train", "eight"] and list(store.texts) == ["one", "a b"]
    assert store.n_samples.tolist() == [8000, 16000]
    assert store.levels_db[1] == pytest.approx(20 * np.log10(0.1 / np.sqrt(2)), abs=0.3)
    assert np.abs(store.pcm(1)).max() == pytest.approx(0.1 * 32768, rel=0.05)


def test_an_empty_split_says_what_to_change(tmp_path):
    with pytest.raises(
        DataError,
        match=r"left for test \(1 were rejected; silent: 1\); \S+rejected.jsonl says which; change data.split",
    ):
        write_store(Listed(*one_each()[:2], spoken("s", "test", waveform=np.zeros(9999, np.float32))), tmp_path)


def contents(folder):
    stores = [Store.open(folder, split) for split in SPLITS]
    return [
        (list(s.ids), list(s.texts), s.n_samples.tolist(), [s.pcm(i).tobytes() for i in range(len(s))]) for s in stores
    ]


def test_several_processes_write_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PART", 5)
    for n in range(23):
        save(tmp_path / "audio" / f"{n}.wav", f"word {n}", seconds=0.2, hz=200 + n)
    (tmp_path / "audio" / "bad.wav").write_text("broken")
    summaries = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        summaries.append(
            write_store(Folder(str(tmp_path / "audio"), fractions=(0.4, 0.3, 0.3)), folder, workers=workers)
        )
    assert summaries[0] == summaries[1] and summaries[0]["rejected"] == {"cannot be decoded as audio": 1}
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert (tmp_path / "1/rejected.jsonl").read_bytes() == (tmp_path / "2/rejected.jsonl").read_bytes()


def test_an_interrupted_store_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PART", 3)
    read = []

    class Stops:
        def __init__(self, n, at):
            self.n, self.at = n, at

        def __call__(self):
            read.append(self.n)
            if self.n == self.at:
                raise KeyboardInterrupt
            return tone(hz=300 + self.n), 16000

    def source(at=None):
        base = [spoken(f"u{n}", SPLITS[n % 3]) for n in range(10)]
        return Listed(*(type(u)(**{**vars(u), "read": Stops(n, at)}) for n, u in enumerate(base)))

    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    write_store(source(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write_store(source(at=7), tmp_path / "cut")
    assert part_path(tmp_path / "cut", 1).exists() and not part_path(tmp_path / "cut", 2).exists()
    with pytest.raises(DataError, match=r"summary\.json"):
        Store.open(tmp_path / "cut", "train")
    read.clear()
    write_store(source(), tmp_path / "cut")
    assert read == [6, 7, 8, 9] and contents(tmp_path / "cut") == contents(tmp_path / "whole")
