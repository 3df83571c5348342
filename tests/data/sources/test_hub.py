"""Data sets in the forms of the datasets library, from local folders; what cannot be reached is one line."""

import datasets
import pytest
from corpora import hub

from rkd.data.corpus import write_store
from rkd.data.sources import Rejected
from rkd.data.sources.hub import Hub
from rkd.data.store import SPLITS, Store
from rkd.errors import ConfigError, DataError, ResourceError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A data set of six recordings a split, as save_to_disk and as Parquet."""
    return hub(tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize("form", ["disk", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_local_forms(saved, tmp_path, form, streaming, monkeypatch):
    if streaming and form == "disk":
        pytest.skip("save_to_disk is memory-mapped in any case")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "store"
    folder.mkdir()
    source = Hub(str(saved / form), streaming=streaming)
    summary = write_store(source, folder, workers=1)
    assert {s: summary["splits"][s]["utterances"] for s in SPLITS} == dict.fromkeys(SPLITS, 6)
    store = Store.open(folder, "validation")
    assert list(store.texts) == [f"word {n}" for n in range(6)] and list(store.speakers) == list("012012")
    assert store.ids[0] == "validation/00000000" and (store.n_samples == 4800).all()
    assert all(path.is_file() for path in source.inputs())


def test_a_single_split_is_split_by_speaker_or_hash(saved):
    found = list(Hub(str(saved / "single"), split="speaker").utterances())
    assert len(found) == 6 and len({(u.speaker, u.split) for u in found}) == 3
    found = list(Hub(str(saved / "single"), max_rows=2).utterances())
    assert [u.split for u in found] == ["train", "train"]


def test_columns_are_chosen_and_missing_ones_said(saved):
    one = next(Hub(str(saved / "disk"), text="speaker_id").utterances())
    assert one.text == "0"
    with pytest.raises(ConfigError, match=r"data\.text=words: .* no such column; it has audio, sentence, speaker_id"):
        next(Hub(str(saved / "disk"), text="words").utterances())


def test_rows_without_audio_are_rejected(tmp_path):
    rows = {"audio": [None, {"bytes": b"RIFFnoise", "path": None}], "text": ["a", "b"]}
    made = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "d")
    first, second = Hub(str(tmp_path / "d")).utterances()
    assert isinstance(first, Rejected) and first.kind == "no audio in the row"
    with pytest.raises(DataError, match=r"^cannot be decoded as audio"):
        second.read()


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        list(Hub(str(tmp_path / "nowhere")).inputs())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot load it"):
        list(Hub(str(tmp_path / "empty")).utterances())
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "train.parquet").write_text("torn")
    with pytest.raises(DataError, match=r"cannot load it \(Parquet file size is 4 bytes"):
        list(Hub(str(tmp_path / "torn")).utterances())


def test_an_unreachable_hub_names_the_local_folder(monkeypatch):
    import huggingface_hub

    def offline(self, *args, **kwargs):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    with pytest.raises(ResourceError, match=r"cannot load a/b from the Hugging Face hub.*data\.path=<folder>"):
        list(Hub("a/b").inputs())
    assert list(Hub("a/b", revision="0" * 40).inputs()) == [f"a/b None {'0' * 40}"]
