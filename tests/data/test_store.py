"""What goes into a store comes out of it, bit by bit, and an unfinished store does not look like one."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd.data.store import Store, StoreWriter
from rkd.errors import DataError


def write(path, clips):
    (path.parent / "summary.json").write_text('{"has_text": false}')
    with StoreWriter(path) as writer:
        for i, pcm in enumerate(clips):
            writer.add(f"u{i}", "train", None if i % 3 == 0 else f"text {i}", f"s{i % 2}", "en", None, pcm, -20.0 - i)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 50), max_size=600))
def test_store_returns_what_was_written(tmp_path_factory, lengths):
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(len(lengths))
    clips = [rng.integers(-32768, 32768, n).astype(np.int16) for n in lengths]
    write(folder / "part-00000.arrow", clips)
    store = Store.open(folder, "train")
    assert len(store) == len(clips)
    assert list(store.ids) == [f"u{i}" for i in range(len(clips))]
    assert list(store.texts) == [None if i % 3 == 0 else f"text {i}" for i in range(len(clips))]
    assert store.n_samples.dtype == np.int64 and store.n_samples.tolist() == lengths
    assert store.levels_db.dtype == np.float32 and store.levels_db.tolist() == [-20.0 - i for i in range(len(clips))]
    for i, pcm in enumerate(clips):
        assert np.array_equal(store.pcm(i), pcm)


def test_columns_are_read_alike_one_by_one_in_slices_and_all_together(tmp_path):
    for part in range(3):
        write(tmp_path / f"part-0000{part}.arrow", [np.zeros(4, dtype=np.int16)] * (300 if part != 1 else 0))
    store = Store.open(tmp_path, "train")
    assert len(store.texts) == 600 and list(store.texts)[:3] == [None, "text 1", "text 2"]
    for column in (store.ids, store.texts, store.speakers, store.languages, store.sources):
        whole = list(column)
        assert [column[i] for i in range(600)] == whole and column[7:600:3] == whole[7:600:3]
        for i in (-1, 600):
            with pytest.raises(IndexError):
                column[i]


def test_pcm_is_a_view_of_the_file(tmp_path):
    write(tmp_path / "part-00000.arrow", [np.arange(10, dtype=np.int16)] * 300)
    store = Store.open(tmp_path, "train")
    for i in (0, 255, 256, 299):
        assert store.pcm(i).dtype == np.int16 and not store.pcm(i).flags.owndata and not store.pcm(i).flags.writeable
    with pytest.raises(IndexError):
        store.pcm(300)


def test_long_clips_are_split_over_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(StoreWriter, "max_samples", 100)
    clips = [np.full(n, n, dtype=np.int16) for n in (99, 1, 250, 3)]
    write(tmp_path / "part-00000.arrow", clips)
    store = Store.open(tmp_path, "train")
    assert all(np.array_equal(store.pcm(i), clips[i]) for i in range(4))


def test_pickle_carries_the_path_and_not_the_audio(tmp_path):
    write(tmp_path / "part-00000.arrow", [np.ones(100_000, dtype=np.int16)])
    pickled = pickle.dumps(Store.open(tmp_path, "train"))
    assert len(pickled) < 2000
    assert np.array_equal(pickle.loads(pickled).pcm(0), np.ones(100_000))


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "part-00000.arrow") as writer:
        writer.add("a", "train", None, None, None, None, np.ones(5, dtype=np.int16), 0.0)
        assert not (tmp_path / "part-00000.arrow").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_stores_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="rkd prepare"):
        Store.open(tmp_path, "train")
    write(tmp_path / "part-00000.arrow", [np.ones(5000, dtype=np.int16)])
    content = (tmp_path / "part-00000.arrow").read_bytes()
    (tmp_path / "part-00000.arrow").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"part-00000\.arrow"):
        Store.open(tmp_path, "train")


def test_pcm_must_be_16_bit(tmp_path):
    with pytest.raises(TypeError), StoreWriter(tmp_path / "part-00000.arrow") as writer:
        writer.add("a", "train", None, None, None, None, np.ones(5), 0.0)
