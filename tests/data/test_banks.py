"""Noise banks: split within classes, silence is gone, and large sets are cut evenly."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise_sets import SETS, noise, save

from rkd.audio import from_pcm16
from rkd.data.banks import Recordings, load_noise, prepare_noise, trim_silence
from rkd.data.banks.layouts import Clip
from rkd.data.banks.splits import rank_split, split_noise
from rkd.data.store import SPLITS
from rkd.errors import ConfigError, DataError

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the recordings in ../shared/data")

file_sets = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1)


def placed(labels):
    """Return files as recordings of their own."""
    return {name: Clip(label, name) for name, label in labels.items()}


@given(st.sets(st.text(max_size=5), min_size=3, max_size=50))
def test_rank_split_gives_each_split_something(keys):
    splits = rank_split(keys)
    assert set(splits) == keys and set(splits.values()) == set(SPLITS)
    counts = [list(splits.values()).count(split) for split in SPLITS]
    assert counts[1] <= max(1, 0.1 * len(keys) + 0.5) and counts[2] <= max(1, 0.2 * len(keys) + 0.5)


@given(file_sets)
def test_a_noise_split_covers_every_file(sizes):
    labels = {f"{label}/{n}.wav": label for label, size in sizes.items() for n in range(size)}
    if len(labels) < 3:
        with pytest.raises(DataError, match="at least 3 recordings"):
            split_noise(placed(labels))
        return
    chosen = split_noise(placed(labels))
    assert set(chosen) == set(labels)
    if max(sizes.values()) >= 3 or sum(sizes.values()) == len(sizes):
        assert set(chosen.values()) == set(SPLITS)


@given(file_sets, st.integers(3, 9))
def test_a_new_noise_class_does_not_move_the_others(sizes, size):
    labels = {f"{label}/{n}.wav": label for label, k in sizes.items() for n in range(k + 2)}
    before = split_noise(placed(labels))
    after = split_noise(placed(labels | {f"new/{n}.wav": "new" for n in range(size)}))
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("holdout", [0.25, ["c3", "c5"]])
def test_held_out_classes_are_only_tested(holdout):
    labels = {f"c{c}/{n}.wav": f"c{c}" for c in range(8) for n in range(6)}
    chosen = split_noise(placed(labels), "class", holdout)
    unseen = set(labels.values()) - {labels[name] for name, split in chosen.items() if split == "train"}
    assert len(unseen) == 2 and (holdout == 0.25 or unseen == set(holdout))
    assert {chosen[name] for name in labels if labels[name] in unseen} == {"test"}
    assert {split for name, split in chosen.items() if labels[name] not in unseen} == set(SPLITS)


@pytest.mark.parametrize(
    ("split", "holdout", "message"),
    [("class", ["nope"], "there is no class nope"), ("class", ["a", "b"], "every class"), ("class", 1.5, "between 0"),
     ("class", [], "noise.split=file"), ("official", 0.25, "no published split")],
)  # fmt: skip
def test_impossible_noise_splits_are_configuration_errors(split, holdout, message):
    labels = {f"{label}/{n}.wav": label for label in "ab" for n in range(4)}
    with pytest.raises(ConfigError, match=message):
        split_noise(placed(labels), split, holdout)


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
    (folder / "a" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    summary = prepare_noise(Recordings(str(folder)), out)
    assert summary["rejected"] == {
        "cannot be decoded as audio": 1, "no such audio file": 1, "too short without its silence": 1
    }  # fmt: skip
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
        prepare_noise(Recordings(str(tmp_path / "in")), tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        prepare_noise(Recordings(str(tmp_path / "gone")), tmp_path)
    with pytest.raises(DataError, match=r"noise\.arrow"):
        load_noise(tmp_path / "gone", "train")


@pytest.mark.parametrize("layout", SETS)
def test_every_layout_becomes_a_bank(layout, tmp_path):
    SETS[layout](tmp_path / "in")
    split = "official" if layout in ("esc50", "urbansound8k", "wham") else "file"
    summary = prepare_noise(Recordings(str(tmp_path / "in"), layout, split), tmp_path)
    assert summary["rejected"] == {} and all(part["clips"] for part in summary["splits"].values())
    assert sum(len(load_noise(tmp_path, where)) for where in SPLITS) == sum(
        part["clips"] for part in summary["splits"].values()
    )


def test_a_large_set_is_cut_evenly_and_not_read_beyond(tmp_path):
    folder = tmp_path / "in"
    for label, n in (("a", 40), ("b", 10), ("c", 10)):
        for i in range(n):
            save(folder / label / f"{i}.wav", noise(1, seed=i))
    (folder / "a" / "broken.wav").write_text("x")
    asked = Recordings(str(folder), max_minutes=7.7 / 60)
    summary = prepare_noise(asked, tmp_path)
    train = load_noise(tmp_path, "train")
    assert [len(clip.pcm) for clip in train] == [16000] * 7 + [11200]  # 7.7 s: the last one is cut
    counts = [[clip.label for clip in train].count(label) for label in "abc"]
    assert sorted(counts) == [2, 3, 3]
    cut = summary["splits"]["train"]
    assert cut["left_out"] > 20 and cut["hours"] == pytest.approx(7.7 / 3600)
    assert summary["splits"]["validation"]["left_out"] == 0
    more = prepare_noise(Recordings(str(folder), max_minutes=10 / 60), tmp_path)
    assert {clip.name for clip in train} <= {clip.name for clip in load_noise(tmp_path, "train")}
    assert more["splits"]["train"]["clips"] == 10


def test_a_class_is_seen_if_a_bank_has_training_clips_of_it(tmp_path):
    for i in range(30):  # each file a class of its own, of which a second has room for one
        save(tmp_path / "in" / f"{i}.wav", noise(1, seed=i))
    for label in "ab":
        for i in range(5):
            save(tmp_path / "in" / label / f"{i}.wav", noise(1, seed=i))
    prepare_noise(Recordings(str(tmp_path / "in"), max_minutes=4 / 60), tmp_path)
    trained = {clip.label for clip in load_noise(tmp_path, "train")}
    tested = load_noise(tmp_path, "test")
    assert len(trained) == 4 and all(clip.seen == (clip.label in trained) for clip in tested)
    assert not all(clip.seen for clip in tested)


def test_what_a_configuration_asks_for():
    node = {"_target_": "x", "weight": 1.0, "folder": "/n", "split": "class", "holdout": ["rain"], "without": ["dog"]}
    asked = Recordings.of(node)
    assert asked == Recordings("/n", split="class", holdout=("rain",), without=("dog",)) and hash(asked)
    assert "folder" not in asked.inputs() and asked.inputs()["max_minutes"] == 120


def test_an_official_split_that_is_not_published_is_refused_before_anything_is_read(tmp_path):
    SETS["demand"](tmp_path)
    with pytest.raises(ConfigError, match="no published split; choose file or class"):
        Recordings(str(tmp_path), "demand", "official").files()


@needs_data
def test_real_noise(tmp_path):
    summary = prepare_noise(Recordings(str(DATA / "noise/speech-commands")), tmp_path)
    assert [summary["splits"][split]["clips"] for split in SPLITS] == [3, 1, 1]


@needs_data
def test_no_silent_stretch_is_left_in_esc50(tmp_path):
    prepare_noise(Recordings(str(DATA / "noise/esc50"), split="class"), tmp_path)
    for split in SPLITS:
        for clip in load_noise(tmp_path, split):
            frames = clip.pcm[: len(clip.pcm) // 320 * 320].reshape(-1, 320)
            assert np.abs(frames).max(axis=1).min() > 0, clip.name
