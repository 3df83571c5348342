"""Every command of docs/losses.md runs, in its smallest form."""

import json
import re
import shlex
from pathlib import Path

import pytest

from rkd import stages
from rkd.config import compose
from rkd.config.folders import group_files

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^rkd .+$", PAGE, re.MULTILINE)
SMALL = ["data.n_train=24", "data.n_validation=6", "data.n_test=6", "data.length=[1,3]", "noise=white",
         "noise@teacher.noise=white", "trainer.steps=2", "trainer.batch_seconds=12", "trainer.validate_every=2",
         "trainer.validate_utterances=4", "trainer.clean=0",
         *(f"teacher.trainer.{x}" for x in ("steps=2", "batch_seconds=12", "validate_every=2",
         "validate_utterances=4")),
         "evaluate=trained", "evaluate.snr=[5]", "evaluate.quality_utterances=0", "log_every=1",
         "device=cpu"]  # fmt: skip


def run(folder, stage, *overrides):
    overrides = [*overrides, f"root={folder}/runs", *SMALL]
    return stages.run(stage, compose(stage, overrides), overrides)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with the teachers that the page names."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("small", "base"):
        made = run(folder, "train-teacher", f"teacher={name}")
        (folder / f"runs/train-teacher/{name}-1a2b3c4d").symlink_to(made)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_runs(command, work, monkeypatch):
    monkeypatch.chdir(work)
    _, stage, *overrides = shlex.split(command, comments=True)
    folder = run(work, stage, *overrides)
    assert '"state": "done"' in (folder / "status.json").read_text()
    if stage == "evaluate":
        systems = json.loads((folder / "results.json").read_text())["systems"]
        assert [s["role"] for s in systems] == ["teacher", "teacher", "student"]
        return
    losses = [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len([told for told in losses if told]) == 2
    set_to = [o.lstrip("+").partition("=")[::2] for o in overrides if o.lstrip("+").startswith("loss.terms.")]
    on = {key.split(".")[2] for key, value in set_to if not (key.endswith(".weight") and value == "0")}
    assert on <= set(losses[0])


def test_every_configuration_and_every_option_is_on_the_page():
    chosen = {word.removeprefix("loss=") for c in COMMANDS for word in c.split() if word.startswith("loss=")}
    assert set(group_files("loss")) <= chosen
    for name in ("kd", "kd_hidden", "kd_attention", "kd_relations", "consistency", "adversarial"):
        for term in compose("distill", [f"loss={name}"]).loss.terms.values():
            assert all(key in PAGE for key in term if not key.startswith("_") and key not in ("needs", "teacher"))
