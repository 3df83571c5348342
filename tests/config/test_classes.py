"""Classes named in YAML: whom they are trusted to, and what they take."""

import sys

import pytest
from config_refusals import plain, refusal

from rkd.config import compose, instantiate
from rkd.errors import ConfigError


@pytest.fixture
def my_package(tmp_path, monkeypatch):
    """A user's package beside which rkd is started, with a loss and a noise, and a YAML of each."""
    (tmp_path / "my_rkd.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "class Quiet:\n    def __init__(self, level_db: float, inner=None):\n"
        "        self.level_db, self.inner = level_db, inner\n"
        "class Broken:\n    def __init__(self):\n        raise TypeError('inside')\n"
    )
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "quiet.yaml").write_text(
        "defaults: [_common, _self_]\ntypes:\n  quiet: {_target_: my_rkd.Quiet, level_db: -60, weight: 1.0}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RKD_CONF", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_rkd"
    sys.modules.pop("my_rkd", None)


def test_a_users_class_needs_one_yaml_and_trust(my_package):
    assert "trust=[my_rkd]" in refusal("noise=quiet")
    config = compose("distill", ["noise=quiet", "trust=[my_rkd]"])
    assert "my_rkd" not in sys.modules, "checked by its source, not imported"
    node = {k: v for k, v in config.noise.types.quiet.items() if k != "weight"}
    assert instantiate(node, ["my_rkd"]).level_db == -60
    assert "level_db, inner" in refusal("noise=quiet", "trust=[my_rkd]", "+noise.types.quiet.levels=3")


def test_instantiate_builds_nested_objects_and_refuses_what_does_not_fit(my_package):
    find = ["my_rkd"]
    compose("distill", ["trust=[my_rkd]"])
    outer = instantiate(
        {"_target_": "my_rkd.Quiet", "inner": {"_target_": "my_rkd.Quiet", "level_db": 1}}, find, level_db=2
    )
    assert (outer.level_db, outer.inner.level_db) == (2, 1)
    for node in (
        {"_target_": "my_rkd.Quiet"},
        {"_target_": "my_rkd.Quiet", "level_db": 1, "loud": 2},
        {"_target_": "my_rkd.Nothing"},
        {"_target_": "my_rkd.nothing.Quiet"},
        {"_target_": "subprocess.run", "args": "true"},
        {"_target_": "my_rkd.Path"},
        {"_target_": "rkd.config.classes.Path"},
    ):
        with pytest.raises(ConfigError):
            instantiate(node, find)
    with pytest.raises(TypeError, match="inside"):  # an error of the class itself stays what it is
        instantiate({"_target_": "my_rkd.Broken"}, find)


def test_yaml_and_loss_classes_agree_on_the_streams():
    from rkd.config.classes import load_class

    seen = 0
    for overrides in (["loss=kd_hidden"], ["loss=kd_hidden", "student=ctc_tiny"], ["loss=supervised"]):
        config = plain(compose("distill", overrides))
        for terms in (config["loss"]["terms"], config["teacher"]["loss"]["terms"]):
            for term in terms.values():
                found = load_class(term["_target_"], [])
                if isinstance(found.needs, tuple) and found.needs:
                    seen += 1
                    assert list(found.needs) == term["needs"]
                    assert list(found.teacher) == term.get("teacher", [])
    assert seen
