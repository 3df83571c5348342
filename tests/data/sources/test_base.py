"""Sources agree with their YAML, split by hash as they should, and say what they cannot find."""

import inspect
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rkd.data.sources import assign
from rkd.data.sources.base import split_named
from rkd.data.sources.corpora import CommonVoice, LibriSpeech, LJSpeech, VoiceBankDemand
from rkd.data.sources.digits import Digits
from rkd.data.sources.files import Folder, Manifest
from rkd.data.sources.fsdd import Fsdd
from rkd.data.sources.hub import Hub
from rkd.data.store import SPLITS
from rkd.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[3]


SOURCES = {
    "digits": Digits, "fsdd": Fsdd, "folder": Folder, "manifest": Manifest, "librispeech": LibriSpeech,
    "ljspeech": LJSpeech, "common_voice": CommonVoice, "voicebank_demand": VoiceBankDemand, "hub": Hub,
}  # fmt: skip


@pytest.mark.parametrize("choice", SOURCES)
def test_yaml_and_constructor_have_the_same_defaults(choice):
    source = SOURCES[choice]
    conf = yaml.safe_load((ROOT / f"conf/data/{choice}.yaml").read_text())
    defaults = conf.pop("defaults")
    if f"_{choice}" in defaults:  # what a mixture shares
        conf |= yaml.safe_load((ROOT / f"conf/data/_{choice}.yaml").read_text())
        defaults.remove(f"_{choice}")
    assert conf.pop("_target_") == f"{source.__module__}.{source.__name__}"
    assert defaults == ["_common", "_self_"]
    parameters = inspect.signature(source).parameters
    assert set(conf) == set(parameters)
    conf["path"] = "???"
    for key, parameter in parameters.items():
        default = source.variants if key == "variants" else parameter.default
        default = list(default) if isinstance(default, tuple) else default
        assert conf[key] == ("???" if default is inspect.Parameter.empty else default), key


@settings(max_examples=30)
@given(st.text(), st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20)))
def test_assign_gives_everything_to_a_split_that_has_a_share(key, weights):
    fractions = [weight / sum(weights) for weight in weights]
    assert fractions[SPLITS.index(assign(key, fractions))] > 0


def test_assign_follows_the_fractions():
    splits = [assign(f"speaker{n}", (0.6, 0.3, 0.1)) for n in range(5000)]
    assert [splits.count(split) / 5000 for split in SPLITS] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.4, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_must_be_three_shares(fractions):
    with pytest.raises(ConfigError, match="sum to 1"):
        Folder("x", fractions=fractions)


@pytest.mark.parametrize("source", [Fsdd, Folder, Manifest])
def test_unknown_split_names_the_allowed_ones(source):
    with pytest.raises(ConfigError, match=r"data\.split=random.*official, speaker, hash"):
        source("x", split="random")


@pytest.mark.parametrize("source", [Fsdd, Folder, Manifest, LibriSpeech, LJSpeech, CommonVoice, VoiceBankDemand])
def test_missing_path_names_the_key(source, tmp_path):
    with pytest.raises(DataError, match=r"data\.path"):
        list(source(str(tmp_path / "nowhere.csv")).inputs())


@pytest.mark.parametrize(
    ("name", "split"),
    [("train-clean-100", "train"), ("dev-other", "validation"), ("test", "test"), ("Validation", "validation"),
     ("train.360", "train"), ("eval_set", "test"), ("trainer", None), ("clips", None), (None, None), ("", None)],
)  # fmt: skip
def test_names_of_splits(name, split):
    assert split_named(name) == split


def test_an_archive_that_is_still_packed_is_pointed_out(tmp_path):
    (tmp_path / "train-clean-100.tar.gz").write_bytes(b"")
    for source, lacking in (
        (Folder, "no audio files in it"), (LibriSpeech, "no part of LibriSpeech in it, such as train-clean-100"),
        (LJSpeech, r"no metadata\.csv in it"), (VoiceBankDemand, r"clean_testset_wav in it"),
        (CommonVoice, r"test\.tsv in it"), (Fsdd, "no audio files in it"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=rf"{lacking}, but train-clean-100\.tar\.gz: unpack it first; "):
            list(source(str(tmp_path)).inputs())


def test_a_path_that_is_a_file_is_called_one(tmp_path):
    for name, fix in (("metadata.csv", "set data.path"), ("speech.tar.gz", "unpack it, and set data.path")):
        (tmp_path / name).write_bytes(b"")
        for source in (Folder, LibriSpeech, LJSpeech, CommonVoice, VoiceBankDemand, Fsdd):
            with pytest.raises(DataError, match=f"{name} is a file; {fix} to the folder with "):
                list(source(str(tmp_path / name)).inputs())
    with pytest.raises(DataError, match=r"is a folder; set data\.path to the manifest"):
        list(Manifest(str(tmp_path)).inputs())
