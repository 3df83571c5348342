"""Folders and manifests: what is read, what is rejected and why, and splits that stay as they are."""

import json
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import save

from rkd.config import hash_inputs
from rkd.data.corpus import write_store
from rkd.data.sources import Rejected, Utterance
from rkd.data.sources.files import Folder, Manifest
from rkd.errors import DataError


def test_folder_reads_texts_and_speakers(tmp_path):
    save(tmp_path / "ann" / "a.wav", "Hello")
    save(tmp_path / "bob" / "b.flac", rate_hz=8000)
    save(tmp_path / "c.ogg", "root")
    save(tmp_path / ".hidden" / "d.wav")
    source = Folder(str(tmp_path), language="en")
    found = {one.id: one for one in source.utterances()}
    assert {(id, u.text, u.speaker, u.read()[1]) for id, u in found.items()} == {
        ("ann/a", "Hello", "ann", 16000),
        ("bob/b", None, "bob", 8000),
        ("c", "root", None, 16000),
    }
    assert len(list(source.inputs())) == 5


def test_folder_official_split(tmp_path):
    for name in ("train/ann/a", "valid/b", "test/bob/c", "other/d"):
        save(tmp_path / f"{name}.wav", "x")
    found = list(Folder(str(tmp_path), "official").utterances())
    assert {(u.id, u.split, u.speaker) for u in found if isinstance(u, Utterance)} == {
        ("train/ann/a", "train", "ann"),
        ("valid/b", "validation", None),
        ("test/bob/c", "test", "bob"),
    }
    assert [one.id for one in found if isinstance(one, Rejected)] == ["other/d"]


@settings(max_examples=10, deadline=None)
@given(st.sets(st.integers(0, 60), min_size=4, max_size=12), st.sets(st.integers(61, 90), max_size=5))
def test_splits_are_stable_when_data_is_added_and_speakers_do_not_overlap(tmp_path_factory, first, more):
    folder = tmp_path_factory.mktemp("folder")

    def splits(by):
        return {u.id: (u.split, u.speaker) for u in Folder(str(folder), by).utterances()}

    for n in first:
        save(folder / f"s{n % 7}" / f"{n}.wav", seconds=0.01)
    before = {by: splits(by) for by in ("hash", "speaker")}
    for n in more:
        save(folder / f"s{n % 7}" / f"{n}.wav", seconds=0.01)
    for by, old in before.items():
        after = splits(by)
        assert {id: after[id] for id in old} == old and len(after) == len(first) + len(more)
    of_speaker = defaultdict(set)
    for split, speaker in splits("speaker").values():
        of_speaker[speaker].add(split)
    assert all(len(found) == 1 for found in of_speaker.values())


def test_unknown_speaker_is_rejected_with_what_to_do(tmp_path):
    save(tmp_path / "a.wav")
    (rejected,) = Folder(str(tmp_path), "speaker").utterances()
    assert rejected.kind == "speaker unknown" and "data.split=hash" in rejected.reason


def test_folder_without_audio(tmp_path):
    with pytest.raises(DataError, match="no audio files"):
        list(Folder(str(tmp_path)).inputs())


def write_manifest(folder, kind, rows):
    path = folder / f"list.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        columns = list(rows[0])
        lines = [columns, *([row.get(column) or "" for column in columns] for row in rows)]
        path.write_text("".join(("\t" if kind == "tsv" else ",").join(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize(("audio_column", "text_column"), [("path", "sentence"), ("audio_filepath", "text")])
def test_manifest_formats_and_columns(tmp_path, kind, audio_column, text_column):
    save(tmp_path / "clips" / "a.wav")
    save(tmp_path / "clips" / "b.wav")
    rows = [
        {audio_column: "clips/a.wav", text_column: "hello", "speaker": "ann", "split": "dev", "language": "en"},
        {audio_column: "clips/b.wav", text_column: None, "speaker": None, "split": "train", "language": None},
        {audio_column: "clips/gone.wav", text_column: "x", "split": "test"},
        {audio_column: None, text_column: "x", "split": "test"},
        {audio_column: "clips/a.wav", text_column: "x", "split": "elsewhere"},
    ]
    source = Manifest(str(write_manifest(tmp_path, kind, rows)), "official")
    found = list(source.utterances())
    assert [(u.id, u.split, u.text, u.speaker, u.language) for u in found[:2]] == [
        ("clips/a", "validation", "hello", "ann", "en"),
        ("clips/b", "train", None, None, None),
    ]
    first = 1 if kind == "jsonl" else 2
    for n, (rejected, kind_of_reason) in enumerate(
        zip(found[2:], ["no such audio file", "no audio path", "in no split"], strict=True), first + 2
    ):
        assert rejected.kind == kind_of_reason and f"line {n}" in rejected.reason
    assert len(set(source.inputs())) == 3


def test_manifest_says_what_it_cannot_read(tmp_path):
    save(tmp_path / "a.wav")
    path = tmp_path / "list.jsonl"
    path.write_text('{"audio": "a.wav"}\n\n{oops\n[1]\n')
    good, bad, also_bad = Manifest(str(path)).utterances()
    assert good.id == "a" and "line 3" in bad.reason and "line 4" in also_bad.reason
    table = tmp_path / "list.csv"
    table.write_text("file,words\na.wav,x\n")
    with pytest.raises(DataError, match="audio_filepath"):
        list(Manifest(str(table)).utterances())


def test_links_that_lead_nowhere_or_in_a_circle(tmp_path):
    for n in range(8):
        save(tmp_path / "audio" / f"{n}.wav", "one")
    (tmp_path / "audio" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "audio" / "loop").symlink_to(tmp_path / "audio")
    source = Folder(str(tmp_path / "audio"), fractions=(0.4, 0.3, 0.3))
    before = hash_inputs(source.inputs())
    (tmp_path / "store").mkdir()
    assert write_store(source, tmp_path / "store")["rejected"] == {"no such audio file": 1}
    assert len(list(source.utterances())) == 9
    save(tmp_path / "nowhere.wav")
    assert hash_inputs(source.inputs()) != before


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl"])
def test_an_empty_manifest(tmp_path, name):
    for text in ("", "audio,text\n" if name == "list.csv" else "audio\ttext\n" if name == "list.tsv" else "\n"):
        (tmp_path / name).write_text(text)
        for read in (Manifest.inputs, Manifest.utterances):
            with pytest.raises(DataError, match=f"{name}: holds no recordings"):
                list(read(Manifest(str(tmp_path / name))))
