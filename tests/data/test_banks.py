"""Noise and rooms: nothing is in two splits, silence is gone, and responses begin at the direct path."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from rkd.audio import from_pcm16
from rkd.data.banks import (
    align_room,
    load_noise,
    load_rooms,
    prepare_noise,
    prepare_rooms,
    rank_split,
    split_noise,
    trim_silence,
)
from rkd.data.store import SPLITS
from rkd.errors import ConfigError, DataError

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the recordings in ../shared/data")

file_sets = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1)


def noise(seconds=1.0, seed=0, gain=0.1):
    return (gain * np.random.default_rng(seed).standard_normal(int(seconds * 16000))).astype(np.float32)


def save(path, x, rate_hz=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, x, rate_hz)


@given(st.sets(st.text(max_size=5), min_size=3, max_size=50))
def test_rank_split_gives_each_split_something(keys):
    splits = rank_split(keys)
    assert set(splits) == keys and set(splits.values()) == set(SPLITS)
    counts = [list(splits.values()).count(split) for split in SPLITS]
    assert counts[1] <= max(1, 0.1 * len(keys) + 0.5) and counts[2] <= max(1, 0.2 * len(keys) + 0.5)


@given(file_sets)
def test_noise_split_covers_every_file_and_marks_classes_without_training_files(sizes):
    labels = {f"{label}/{n}.wav": label for label, size in sizes.items() for n in range(size)}
    if len(labels) < 3:
        with pytest.raises(DataError, match="at least 3 recordings"):
            split_noise(labels)
        return
    chosen = split_noise(labels)
    assert set(chosen) == set(labels)
    trained = {labels[name] for name, (split, _) in chosen.items() if split == "train"}
    assert all(seen == (labels[name] in trained) for name, (_, seen) in chosen.items())
    if max(sizes.values()) >= 3 or sum(sizes.values()) == len(sizes):
        assert {split for split, _ in chosen.values()} == set(SPLITS)


@given(file_sets, st.integers(3, 9))
def test_a_new_noise_class_does_not_move_the_others(sizes, size):
    labels = {f"{label}/{n}.wav": label for label, k in sizes.items() for n in range(k + 2)}
    before = split_noise(labels)
    after = split_noise(labels | {f"new/{n}.wav": "new" for n in range(size)})
    assert {name: after[name] for name in before} == before


def test_clips_cut_from_one_recording_stay_together():
    labels = {f"rain/4-{n}-{take}-10.wav": "rain" for n in range(10) for take in "ABC"}
    chosen = split_noise(labels)
    for n in range(10):
        assert len({chosen[f"rain/4-{n}-{take}-10.wav"] for take in "ABC"}) == 1
    assert {split for split, _ in chosen.values()} == set(SPLITS)


@pytest.mark.parametrize("holdout", [0.25, ["c3", "c5"]])
def test_held_out_classes_are_only_tested(holdout):
    labels = {f"c{c}/{n}.wav": f"c{c}" for c in range(8) for n in range(6)}
    chosen = split_noise(labels, "class", holdout)
    unseen = {labels[name] for name, (_, seen) in chosen.items() if not seen}
    assert len(unseen) == 2 and (holdout == 0.25 or unseen == set(holdout))
    assert {chosen[name] for name in labels if labels[name] in unseen} == {("test", False)}
    assert {split for name, (split, _) in chosen.items() if labels[name] not in unseen} == set(SPLITS)


@pytest.mark.parametrize(
    ("split", "holdout", "message"),
    [("class", ["nope"], "there is no class nope"), ("class", ["a", "b"], "every class"), ("class", 1.5, "between 0"),
     ("class", [], "noise.split=file"), ("random", 0.25, "file, class")],
)  # fmt: skip
def test_impossible_noise_splits_are_configuration_errors(split, holdout, message):
    labels = {f"{label}/{n}.wav": label for label in "ab" for n in range(4)}
    with pytest.raises(ConfigError, match=message):
        split_noise(labels, split, holdout)


def test_trim_silence_removes_silent_frames_and_joins_without_clicks():
    t = np.arange(7680) / 16000
    tone = (0.1 * np.sin(2 * np.pi * 55 * t)).astype(np.float32)  # from 0 to 0.06: a jump, if it is just put together
    x = np.concatenate([np.zeros(4800), tone, np.zeros(6400), 1e-5 * noise(0.5), tone]).astype(np.float32)
    y = trim_silence(x)
    assert y.dtype == np.float32 and len(y) == 2 * 7680 - 80
    assert np.abs(np.diff(y)).max() < 0.01
    assert np.array_equal(y[:7600], tone[:7600]) and np.array_equal(y[7680:], tone[80:])


def test_trim_silence_leaves_steady_noise_and_empties_silence():
    x = noise(0.77)
    assert trim_silence(x) is x
    assert len(trim_silence(np.zeros(16000, np.float32))) == 0
    assert len(trim_silence(np.zeros(0, np.float32))) == 0


def test_noise_bank(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    out.mkdir()
    for label in "ab":
        for n in range(5):
            save(folder / label / f"{n}.wav", noise(1, seed=n))
    save(folder / "hum.flac", np.stack([noise(1), noise(1)], axis=1), 8000)
    save(folder / "a" / "padded.wav", np.concatenate([noise(0.8), np.zeros(32000)]))
    save(folder / "a" / "click.wav", np.concatenate([noise(0.3), np.zeros(32000)]))
    (folder / "a" / "broken.wav").write_text("x")
    summary = prepare_noise(folder, out)
    assert summary["rejected"] == {"cannot be decoded as audio": 1, "too short without its silence": 1}
    assert summary == json.loads((out / "summary.json").read_text())
    clips = {split: load_noise(out, split) for split in SPLITS}
    names = [clip.name for split in SPLITS for clip in clips[split]]
    assert len(names) == len(set(names)) == 12
    by_name = {clip.name: clip for split in SPLITS for clip in clips[split]}
    assert by_name["hum.flac"].label == "hum" and len(by_name["hum.flac"].pcm) == 32000
    assert len(by_name["a/padded.wav"].pcm) == 12800
    assert np.abs(from_pcm16(by_name["b/3.wav"].pcm) - noise(1, seed=3)).max() < 1e-4
    for split in SPLITS:
        assert len(load_noise(out, split, True)) + len(load_noise(out, split, False)) == len(clips[split])


def test_noise_that_is_all_unusable_says_so(tmp_path):
    for n in range(4):
        save(tmp_path / "in" / f"{n}.wav", np.zeros(16000))
    with pytest.raises(DataError, match="4 were rejected"):
        prepare_noise(tmp_path / "in", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        prepare_noise(tmp_path / "gone", tmp_path)
    with pytest.raises(DataError, match=r"noise\.arrow"):
        load_noise(tmp_path / "gone", "train")


def room(delay=100, decay_seconds=0.3, seed=0):
    t = np.arange(16000) / 16000
    tail = 0.1 * np.random.default_rng(seed).standard_normal(16000) * 10 ** (-3 * t / decay_seconds)
    x = np.concatenate([np.zeros(delay), tail])
    x[delay] = -0.5
    return x.astype(np.float32)


def test_room_starts_at_the_direct_path_and_ends_60_db_down():
    response = align_room(room(decay_seconds=0.3))
    assert response.dtype == np.float32 and response[0] == 1.0
    full = room()[100:].astype(np.float64) / -0.5
    assert np.allclose(response, full[: len(response)])
    lost = np.sum(full[len(response) :] ** 2) / np.sum(full**2)
    assert -61 < 10 * math.log10(lost) <= -60


def test_rooms_are_split_and_a_subfolder_is_one_room(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    out.mkdir()
    for n in range(4):
        save(folder / "hall" / f"position{n}.wav", room(seed=n))
        save(folder / f"room{n}.wav", np.stack([room(seed=10 + n), 0 * room()], axis=1))
    save(folder / "nothing.wav", np.zeros(100))
    summary = prepare_rooms(folder, out)
    assert summary["rejected"] == {"silent": 1}
    rooms = {split: load_rooms(out, split) for split in SPLITS}
    assert sum(map(len, rooms.values())) == 8 and all(rooms.values())
    assert sum(any(r.name.startswith("hall/") for r in rooms[split]) for split in SPLITS) == 1
    first_channel = next(r for split in SPLITS for r in rooms[split] if r.name == "room2")
    expected = align_room(room(seed=12))
    assert np.allclose(first_channel.response[: len(expected)], expected, atol=1e-3)  # 16 bit lengthens the tail


def test_two_rooms_are_too_few(tmp_path):
    for n in range(2):
        save(tmp_path / "in" / f"room{n}.wav", room(seed=n))
    with pytest.raises(DataError, match="at least 3"):
        prepare_rooms(tmp_path / "in", tmp_path)


@needs_data
def test_real_noise_and_rooms(tmp_path):
    summary = prepare_noise(DATA / "noise/speech-commands", tmp_path)
    assert [summary["splits"][split]["clips"] for split in SPLITS] == [3, 1, 1]
    assert prepare_rooms(DATA / "rir", tmp_path)["rejected"] == {}
    assert [len(load_rooms(tmp_path, split)) for split in SPLITS] == [2, 1, 1]


@needs_data
def test_no_silent_stretch_is_left_in_esc50(tmp_path):
    prepare_noise(DATA / "noise/esc50", tmp_path, split="class")
    for split in SPLITS:
        for clip in load_noise(tmp_path, split):
            frames = clip.pcm[: len(clip.pcm) // 320 * 320].reshape(-1, 320)
            assert np.abs(frames).max(axis=1).min() > 0, clip.name
