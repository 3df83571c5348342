"""Keys read from the text of YAML files: the same that a YAML parser and Hydra find."""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rkd.commands import keys
from rkd.config import conf_folders
from rkd.config.composition import _compose_groups
from rkd.config.folders import GROUPS, group_files
from rkd.config.overrides import parse_override
from rkd.config.tree import leaves

OWN = conf_folders()[-1]
CHOICES = [
    f"{group}={choice}"
    for group in (*GROUPS, "noise@teacher.noise", "denoiser@teacher.denoiser")
    for choice in group_files(group.partition("@")[0])
]


@pytest.fixture(autouse=True)
def forget():
    keys._text.cache_clear()
    yield
    keys._text.cache_clear()


@pytest.mark.parametrize("file", sorted(OWN.rglob("*.yaml")), ids=lambda file: file.relative_to(OWN).as_posix())
def test_the_keys_of_a_file_are_those_that_a_parser_finds(file):
    text = file.read_text()
    assert sorted(keys.yaml_keys(text)) == sorted(key for key, _ in leaves(yaml.safe_load(text)))


@pytest.mark.parametrize("override", CHOICES)
def test_the_keys_of_a_choice_are_those_that_hydra_composes(override):
    group, _, choice = override.partition("=")
    tree = OmegaConf.to_container(_compose_groups([parse_override(override)]).tree)
    assert keys.keys_below({group: choice}, "") == sorted(key for key, _ in leaves(tree))


NAMES = st.text("abcde_", min_size=1, max_size=5)
TEXTS = st.sampled_from(["a word", "x: y", "{}", "#1", "it's", "[1]", "a,b", "'"])
VALUES = st.one_of(st.integers(), st.booleans(), st.none(), TEXTS, st.lists(st.integers(), max_size=3))
TREES = st.recursive(VALUES, lambda below: st.dictionaries(NAMES, below, min_size=1, max_size=4), max_leaves=12)


@given(tree=st.dictionaries(NAMES, TREES, min_size=1, max_size=4), flow=st.sampled_from([True, False, None]))
def test_the_keys_of_any_tree_are_found(tree, flow):
    text = yaml.safe_dump(tree if flow else {"top": tree}, default_flow_style=flow, width=10_000)
    text, tree = f"top: {text}" if flow else text, {"top": tree}
    assert sorted(keys.yaml_keys(text)) == sorted(key for key, _ in leaves(tree))


@given(st.text())
def test_no_text_is_too_strange(text):
    assert isinstance(keys.yaml_keys(text), list)


def test_the_values_of_a_key_are_its_words():
    assert keys.values_of("trainer.schedule") == ["cosine", "linear", "constant"]
    assert keys.values_of("loss.terms.hidden.layers") == ["even", "last"]
    assert keys.values_of("trainer.patience") == ["null"]
    assert keys.values_of("data.streaming") == ["true", "false"]
    assert keys.values_of("trainer.steps") == keys.values_of("no.such.key") == []


def test_paths_begin_with_what_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("speech/a", "speech/b", "space here", ".hidden"):
        Path(name).mkdir(parents=True)
    Path("speech.txt").touch()
    assert keys.paths("sp", True) == ["space here/", "speech/"]
    assert keys.paths("speech", False) == ["speech/", "speech.txt"]
    assert keys.paths("speech/", True) == ["speech/a/", "speech/b/"]
    assert keys.paths(f"{tmp_path}/speech/b", True) == [f"{tmp_path}/speech/b/"]
    assert keys.paths(".h", True) == [".hidden/"]
    assert keys.paths("nowhere/x", True) == []
    assert f"{os.sep}tmp/" in keys.paths("/t", True)
