"""Strings of recorded digits: one speaker each, and no recording in two splits."""

import pytest
from corpora import fsdd

from rkd.data.corpus import write_store
from rkd.data.sources import Rejected
from rkd.data.sources.fsdd import Fsdd
from rkd.data.store import SPLITS
from rkd.errors import ConfigError, DataError


@pytest.mark.parametrize("split", ["official", "speaker", "hash"])
def test_fsdd_never_shares_a_recording(tmp_path, monkeypatch, split):
    fsdd(tmp_path)
    source = Fsdd(str(tmp_path), split, 40, 40, 40, test_speakers=["bob"])
    pools = {}
    monkeypatch.setattr(source, "_strings", lambda name, pool: pools.update({name: pool}) or ())
    assert not list(source.utterances())
    marks = {s: [path for paths in pools[s].values() for path in paths] for s in SPLITS}
    every = [mark for split_marks in marks.values() for mark in split_marks]
    assert len(every) == 360 == len(set(every))
    if split == "speaker":
        assert set(pools["test"]) == {"bob"} and "bob" not in pools["train"] and "bob" not in pools["validation"]
    if split == "official":
        assert len(marks["test"]) == len(marks["validation"]) == 150


def test_fsdd_strings_have_one_speaker_and_gaps(tmp_path):
    fsdd(tmp_path)
    source = Fsdd(str(tmp_path), n_train=20, n_validation=1, n_test=1, gap_seconds=[0.1, 0.2])
    (tmp_path / "recordings" / "3_ann_99.wav").write_text("broken")
    (tmp_path / "recordings" / "three.wav").write_text("broken")
    found = list(source.utterances())
    assert [one.kind for one in found if isinstance(one, Rejected)] == [
        "cannot be decoded as audio",
        "file name is not {digit}_{speaker}_{index}",
    ]
    for one in found[2:]:
        n = len(one.text.split())
        waveform, rate_hz = one.read()
        seconds = len(waveform) / rate_hz
        assert 2 <= n <= 6 and n * 0.12 + (n - 1) * 0.099 < seconds < n * 0.12 + (n - 1) * 0.201
        assert one.speaker in ("ann", "bob", "cat") and one.language == "en"


def test_fsdd_without_recordings_for_the_test(tmp_path):
    fsdd(tmp_path)
    for path in tmp_path.rglob("*_[0-4].wav"):
        path.unlink()
    with pytest.raises(DataError, match=r"none is for test: with data\.split=official index 0-4 tests"):
        list(Fsdd(str(tmp_path)).inputs())
    assert Fsdd(str(tmp_path), n_test=0).inputs() and Fsdd(str(tmp_path), "hash").inputs()


def test_fsdd_speaker_split_needs_a_known_speaker(tmp_path):
    fsdd(tmp_path, n=1)
    with pytest.raises(ConfigError, match="test_speakers"):
        Fsdd(str(tmp_path), "speaker")
    with pytest.raises(DataError, match="there are ann, bob, cat"):
        list(Fsdd(str(tmp_path), "speaker", test_speakers=["dora"]).utterances())


def test_real_fsdd(tmp_path, shared):
    source = Fsdd(str(shared / "speech/fsdd"), n_train=20, n_validation=10, n_test=10)
    assert len(list(source.inputs())) == 2000
    summary = write_store(source, tmp_path)
    assert summary["rejected"] == {} and summary["splits"]["train"]["utterances"] == 20
