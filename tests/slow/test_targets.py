"""Stored targets through the real stages: the same losses as with a live teacher, which is not loaded any more."""

import json
import re
import shlex
from pathlib import Path

import pytest

from rkd import assemble, stages
from rkd.config import compose
from rkd.data.store import Store
from rkd.errors import DataError
from rkd.targets import Targets, parts

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "targets.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^rkd .+$", PAGE, re.MULTILINE)
SMALL = ["experiment=smoke", "log_every=1", "device=cpu", "trainer.silence=0", "trainer.steps=6"]
STORED = "targets.live=false"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def distil(root, *overrides):
    """Train a student; return its folder and its losses by step."""
    overrides = [*SMALL, f"root={root}", *overrides]
    folder = stages.run("distill", compose("distill", overrides), overrides)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return folder, [line["loss"] for line in lines if "loss" in line]


def equal(ours, theirs, rel):
    for one, two in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two, rel=rel, abs=1e-4)


@pytest.mark.parametrize("family", [[], ["student=ctc_tiny", "teacher=ctc_small"], ["loss.labels=teacher"]])
def test_stored_equals_live(root, family):
    live, stored = distil(root, *family), distil(root, *family, STORED)
    assert live[0] != stored[0]
    equal(stored[1], live[1], 2e-3)
    assert all(losses["soft"] > 0 for losses in stored[1])


def test_the_largest_and_the_rest_equal_those_of_a_live_teacher(root):
    equal(distil(root, STORED, "targets.k=4")[1], distil(root, "loss.terms.soft.top_k=4")[1], 2e-3)


def test_a_second_student_loads_no_teacher(root, monkeypatch):
    distil(root, STORED)
    monkeypatch.setattr(assemble, "teacher_model", lambda *args: pytest.fail("the teacher is loaded"))
    for change in ("seed=1", "noise.snr=[3]", "student.d_model=48", "loss.terms.soft.weight=2", "noise.only=0.3"):
        assert distil(root, STORED, change)[1]


def test_an_interrupted_store_goes_on_where_it_was(root, tmp_path, monkeypatch):
    whole, _ = distil(root, STORED)
    monkeypatch.setattr(parts, "PART_BYTES", 1)  # a part an utterance
    parts, add = [], parts.Writer.add

    def breaks(self, name, rows):
        if len(parts) == 9:
            raise KeyboardInterrupt
        parts.append(name)
        add(self, name, rows)

    monkeypatch.setattr(parts.Writer, "add", breaks)
    with pytest.raises(KeyboardInterrupt):
        distil(tmp_path, STORED)
    monkeypatch.setattr(parts.Writer, "add", add)
    again, _ = distil(tmp_path, STORED)
    assert again.name == whole.name
    [b] = tmp_path.glob("targets/*")
    a = root / "targets" / b.name
    [speech] = tmp_path.glob("prepare/digits-*")
    ids = Store.open(speech, "train").ids
    assert len(list(b.glob("part-*.json"))) == len(ids)
    ours, theirs = (Targets(folder, ids) for folder in (a, b))
    assert (ours.n_rows == theirs.n_rows).all() and (ours.n_rows > 0).all()
    for i in range(0, len(ids), 7):
        assert ours.of([i]).values_BND.allclose(theirs.of([i]).values_BND, atol=1e-2)


@pytest.mark.parametrize(
    "change, why",
    [
        ("loss=kd_hidden", "loss.terms.hidden compares more than logits"),
        ("loss.teacher_input=noisy", "loss.teacher_input=noisy"),
        ("loss.terms.soft.temperature={from:4,to:1}", "loss.terms.soft has a temperature that changes"),
        ("loss.on_policy=0.5", "loss.on_policy=0.5"),
    ],
)
def test_what_stays_live_is_said(root, capsys, change, why):
    distil(root, STORED, change)
    assert f"the teacher hears every batch: {why}" in capsys.readouterr().err


def test_a_store_of_other_labels_is_refused(tmp_path):
    """One that was tampered with: the labels are part of a folder's name."""
    folder, _ = distil(tmp_path, STORED)
    for told in folder.parents[1].glob("targets/*/part-*.json"):
        about = json.loads(told.read_text())
        about["ids"] = about["ids"][::-1]
        told.write_text(json.dumps(about))
    with pytest.raises(DataError, match="are of other labels"):
        distil(tmp_path, STORED, "seed=9")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_pages_commands_run(root, command):
    _, stage, *overrides = shlex.split(command, comments=True)
    assert stage == "distill" and distil(root, *overrides)[1]
