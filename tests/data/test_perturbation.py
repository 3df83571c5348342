"""Other speeds and pitches: the frequencies and durations asked for, of training utterances alone."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import Listed, one_each, save, spoken, tone

from rkd import audio
from rkd.data import corpus
from rkd.data.corpus import write_store
from rkd.data.perturbation import PitchShift, Speed, Tempo, perturbations, perturbed
from rkd.data.sources import Rejected
from rkd.data.sources.files import Folder
from rkd.data.store import Store, part_path


def made_by(change, x_T, rate_hz=16000):
    return audio.resample(*change(x_T, rate_hz))


def strongest_hz(x_T):
    spectrum_K = np.abs(np.fft.rfft(x_T * np.hanning(len(x_T)), 1 << 17))
    return spectrum_K.argmax() * 16000 / (1 << 17)


@given(factor=st.floats(0.5, 2), hz=st.floats(200, 2000), rate_hz=st.sampled_from([8000, 16000, 22050, 44100]))
@settings(max_examples=20, deadline=None)
def test_a_tone_at_another_speed_is_the_shorter_higher_tone(factor, hz, rate_hz):
    x_T = made_by(Speed(factor), tone(1.0, rate_hz, hz), rate_hz)
    factor = round(rate_hz * factor) / rate_hz  # of rates in whole Hz
    assert abs(len(x_T) - 16000 / factor) <= 1
    expected_T = 0.1 * np.sin(2 * np.pi * hz * factor * np.arange(len(x_T)) / 16000)
    middle = slice(1000, -1000)  # beyond the ends the filter hears silence
    assert np.abs(x_T - expected_T)[middle].max() < 1e-3


@given(semitones=st.floats(-12, 12), hz=st.floats(200, 1500), seconds=st.floats(0.5, 1.5))
@settings(max_examples=20, deadline=None)
def test_a_tone_at_another_pitch_is_as_long_and_as_loud(semitones, hz, seconds):
    before_T = tone(seconds, hz=hz)
    x_T = made_by(PitchShift(semitones), before_T)
    assert abs(len(x_T) - len(before_T)) <= 1
    assert strongest_hz(x_T) == pytest.approx(hz * 2 ** (semitones / 12), abs=2)
    middle = slice(2000, -2000)
    assert audio.rms_db(x_T[middle]) == pytest.approx(audio.rms_db(before_T[middle]), abs=2)


@given(factor=st.floats(0.5, 2), hz=st.floats(200, 1500), rate_hz=st.sampled_from([8000, 16000, 44100]))
@settings(max_examples=20, deadline=None)
def test_a_tone_at_another_tempo_is_as_high_and_as_loud(factor, hz, rate_hz):
    before_T = tone(1.5, rate_hz, hz)
    x_T = made_by(Tempo(factor), before_T, rate_hz)
    assert abs(len(x_T) - 24000 / factor) <= 2
    assert strongest_hz(x_T) == pytest.approx(hz, abs=2)
    middle = slice(2000, -2000)
    assert audio.rms_db(x_T[middle]) == pytest.approx(audio.rms_db(before_T), abs=2)


def test_where_it_sounds_moves_with_the_tempo():
    x_T = np.concatenate([np.zeros(12000, np.float32), tone(0.25), np.zeros(8000, np.float32)])
    centre = np.average(np.arange(len(x_T)), weights=x_T**2)
    for factor in (0.7, 1.4):
        y_T = made_by(Tempo(factor), x_T)
        found = np.average(np.arange(len(y_T)), weights=y_T**2)
        assert found == pytest.approx(centre / factor, abs=256)  # half a window


def test_where_it_sounds_stays_where_it_is_at_another_pitch():
    x_T = np.concatenate([np.zeros(12000, np.float32), tone(0.25), np.zeros(8000, np.float32)])
    centre = np.average(np.arange(len(x_T)), weights=x_T**2)
    for semitones in (-3, 3):
        y_T = made_by(PitchShift(semitones), x_T)
        assert np.average(np.arange(len(y_T)), weights=y_T**2) == pytest.approx(centre, abs=160)


@pytest.mark.parametrize("n", [1, 200, 1600])
def test_a_clip_shorter_than_a_window(n):
    for change in (PitchShift(2), Tempo(1.0)):
        assert abs(len(made_by(change, tone()[:n])) - n) <= 1


def test_training_utterances_alone_are_made_again_as_they_are_but_for_the_sound():
    listed = [Rejected("x", "silent"), *one_each(), spoken("b", text="two", speaker="ann")]
    found = list(perturbed(listed, perturbations([0.9], [1.1], [-2])))
    names = ["", "#sp0.9", "#te1.1", "#pi-2"]
    assert [one.id for one in found] == [
        "x", *(f"base-train{n}" for n in names), "base-validation", "base-test", *(f"b{n}" for n in names)
    ]  # fmt: skip
    assert {(one.split, one.text, one.speaker, one.language) for one in found[7:]} == {("train", "two", "ann", "en")}


def test_the_limits_hold_for_the_result(tmp_path):
    source = Listed(*one_each(), spoken("a", waveform=tone(1.0)), spoken("b", waveform=tone(0.2)))
    summary = write_store(source, tmp_path, min_seconds=0.19, max_seconds=1.05, speed=[0.9, 1.1], pitch_shift=[1])
    reasons = {row["id"]: row["reason"] for row in map(json.loads, (tmp_path / "rejected.jsonl").open())}
    assert reasons["a#sp0.9"].startswith("too long: 1.1 s") and reasons["b#sp1.1"].startswith("too short: 0.182 s")
    assert len(reasons) == 2 and summary["perturbed"] == {"sp0.9": 2, "sp1.1": 2, "pi1": 3}
    assert summary["splits"]["train"]["utterances"] == 3 + 7 and summary["splits"]["test"]["utterances"] == 1
    store = Store.open(tmp_path, "train")
    assert store.n_samples[store.ids.index("a#pi1")] == 16000


def test_of_each_split_the_first_are_taken_before_they_are_made_again(tmp_path):
    write_store(Listed(*one_each(), spoken("second")), tmp_path, max_utterances=1, speed=[0.9])
    assert list(Store.open(tmp_path, "train").ids) == ["base-train", "base-train#sp0.9"]


def test_several_processes_and_an_interruption_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PART", 4)
    for n in range(6):
        save(tmp_path / "audio" / ("train", "dev", "test")[max(n - 3, 0)] / f"{n}.wav", "word", seconds=0.2, hz=300 + n)
    source, change = Folder(str(tmp_path / "audio"), split="official"), {"speed": [1.1], "pitch_shift": [-2, 3]}
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        write_store(source, tmp_path / str(workers), workers=workers, **change)
    assert len(list((tmp_path / "1").glob("part-*.arrow"))) > 2

    def contents(folder):
        store = Store.open(folder, "train")
        return [(id, store.pcm(i).tobytes()) for i, id in enumerate(store.ids)]

    before = contents(tmp_path / "1")
    assert len(before) == 16 and contents(tmp_path / "2") == before
    part_path(tmp_path / "1", 1).unlink()
    write_store(source, tmp_path / "1", **change)
    assert contents(tmp_path / "1") == before
