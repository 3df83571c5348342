"""Stored targets through the real stages: the same losses as with a live teacher, which is not loaded any more."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from slow_runs import environment

from rkd import assemble, stages
from rkd.config import compose
from rkd.data.store import Store
from rkd.errors import ConfigError, DataError
from rkd.targets import Targets, Writer, parts

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "targets.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^rkd .+$", PAGE, re.MULTILINE)
SMALL = [
    "experiment=smoke", "log_every=1", "device=cpu", "trainer.silence=0", "trainer.steps=6", "data.n_train=40",
    "data.n_validation=6", "data.n_test=8", "teacher.trainer.steps=4", "teacher.trainer.validate_every=4",
]  # fmt: skip
LIVE = "targets.live=true"
BREAKS = """
import os, sys
from rkd import cli, targets
add, told = targets.Writer.add, []
def breaks(self, name, rows):
    told.append(name)
    if os.environ["RANK"] == sys.argv[1] and len(told) > 5:
        raise ValueError("broken")
    add(self, name, rows)
targets.Writer.add = breaks
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def distil(root, *overrides):
    """Train a student; return its folder and its losses by step."""
    overrides = [*SMALL, f"root={root}", *overrides]
    folder = stages.run("distill", compose("distill", overrides), overrides)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return folder, [line["loss"] for line in lines if "loss" in line]


def on_two_ranks(*command, code=0):
    """Run a Python command on two ranks; return what was said."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, *command], env=environment(), capture_output=True, text=True, timeout=300)
    assert (done.returncode != 0) == code, done.stderr
    return done.stderr


def equal(ours, theirs, rel):
    for one, two in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two, rel=rel, abs=1e-4)


def same_targets(root, other):
    """Assert that two runs stored the same; return the folders of the second."""
    [speech] = other.glob("prepare/digits-*")
    ids = Store.open(speech, "train").ids
    folders = [folder for folder in other.glob("targets/*") if (folder / "card.json").is_file()]
    for folder in folders:
        ours, theirs = (Targets(one, ids) for one in (root / "targets" / folder.name, folder))
        assert (ours.n_rows == theirs.n_rows).all() and (ours.n_rows > 0).all()
        for i in range(0, len(ids), 7):
            assert ours.of([i]).values_BND.allclose(theirs.of([i]).values_BND, atol=1e-2)
    return folders


@pytest.mark.parametrize(
    "family",
    [[], ["student=ctc_tiny", "teacher=ctc_small"], ["loss.labels=teacher"], ["loss=kd_hidden"],
     ["loss=kd_relations", "loss.terms.relations.part=decoder"]],
)  # fmt: skip
def test_stored_equals_live(root, family):
    live, stored = distil(root, *family, LIVE), distil(root, *family)
    assert live[0] != stored[0]
    equal(stored[1], live[1], 2e-3)
    assert all(losses["soft"] > 0 for losses in stored[1])


@pytest.mark.parametrize("family", [[], ["student=ctc_tiny", "teacher=ctc_small"]])
def test_the_largest_and_the_rest_equal_those_of_a_live_teacher(root, family):
    equal(distil(root, "targets.k=4", *family)[1], distil(root, "loss.terms.soft.top_k=4", *family)[1], 2e-3)


def test_what_is_drawn_is_near(root):
    """Of a vocabulary of a few words: 4,000 draws give its distribution to a thousandth."""
    drawn = distil(root, "targets.sample=4000", "targets.k=2")[1]
    equal(drawn, distil(root, LIVE)[1], 2e-2)
    assert drawn != distil(root)[1]


def test_hidden_layers_in_codebooks_are_near_and_take_less(root):
    """A byte for each feature, of which 256 levels are nearly all there is, and one for every four."""
    expected = distil(root, "loss=kd_hidden")[1]
    width = sizes(root)[None][1]
    many, few = (distil(root, "loss=kd_hidden", f"targets.codebooks={n}")[1] for n in (width, width // 4))
    equal(many, expected, 2e-2)
    assert many != expected and few != many
    assert sizes(root)[width // 4][0] < 0.2 * sizes(root)[None][0]
    with pytest.raises(ConfigError, match=rf"targets\.codebooks=7 does not divide the {width} features"):
        distil(root, "loss=kd_hidden", "targets.codebooks=7")


def sizes(root):
    """Return bytes and width of a hidden layer as it is stored, by ``targets.codebooks``."""
    found = {}
    for path in root.glob("targets/*/card.json"):
        card = json.loads(path.read_text())
        if card["stream"] == "hidden.encoder.1":
            n_bytes = sum(part.stat().st_size for part in path.parent.glob("part-*.npy"))
            found[card["codebooks"]] = n_bytes, card["n_outputs"]
    return found


def test_several_teachers_are_stored_each_for_itself(root):
    one, two = distil(root)[0], distil(root, "seed=1")[0]
    several = [f"teacher.path=[{one},{two}]", "teacher.weights=[1,2]", "loss=kd_hidden"]
    stored, live = distil(root, *several)[1], distil(root, *several, LIVE)[1]
    equal(stored, live, 2e-3)
    assert {"soft_0", "soft_1", "hidden_0", "hidden_1"} <= stored[0].keys()
    assert stored[0]["soft_0"] != stored[0]["soft_1"]


def test_a_second_student_loads_no_teacher(root, monkeypatch, capsys):
    distil(root, "loss=kd_hidden")
    distil(root, "loss=transcripts")
    monkeypatch.setattr(assemble, "teacher_model", lambda *args: pytest.fail("the teacher is loaded"))
    for change in ("seed=1", "noise.snr=[3]", "student.d_model=48", "loss.terms.hidden.weight=2", "noise.only=0.3",
                   "trainer.silence=0.5"):  # fmt: skip
        assert distil(root, "loss=kd_hidden", change)[1]
        assert "no teacher is loaded: hidden.encoder.1, " in capsys.readouterr().err
    assert distil(root, "loss=transcripts", "seed=1")[1]


def test_an_interrupted_store_goes_on_where_it_was(root, tmp_path, monkeypatch):
    whole, _ = distil(root)
    monkeypatch.setattr(parts, "PART_BYTES", 1)  # a part an utterance
    told, add = [], Writer.add

    def breaks(self, name, rows):
        if len(told) == 9:
            raise KeyboardInterrupt
        told.append(name)
        add(self, name, rows)

    monkeypatch.setattr(Writer, "add", breaks)
    with pytest.raises(KeyboardInterrupt):
        distil(tmp_path)
    monkeypatch.setattr(Writer, "add", add)
    again, _ = distil(tmp_path)
    assert again.name == whole.name
    [folder] = same_targets(root, tmp_path)
    assert len(list(folder.glob("part-*.json"))) == 40


def test_what_rows_mean_is_restored_and_never_replaced(tmp_path):
    """What was lost is made again for the rows that are there; what is another is refused."""
    coded = ["loss=kd_hidden", "targets.codebooks=4"]
    distil(tmp_path, *coded)
    folder = min(book.parent for book in tmp_path.glob("targets/*/codebooks.npy"))
    before = {file.name: file.read_bytes() for file in folder.glob("*.np*")}
    (folder / "card.json").unlink()
    (folder / "codebooks.npy").unlink()
    expected = distil(tmp_path, *coded, "seed=1")[1]
    assert before == {file.name: file.read_bytes() for file in folder.glob("*.np*")}
    book = bytearray(before["codebooks.npy"])
    book[-2] ^= 1
    (folder / "codebooks.npy").write_bytes(bytes(book))
    with pytest.raises(DataError, match=r"card\.json or codebooks\.npy is not what part-0"):
        distil(tmp_path, *coded, "seed=2")
    [told, *_] = folder.glob("part-*.json")
    told.unlink()  # and with it the folder is not finished: the book is made again, and then the part
    assert distil(tmp_path, *coded, "seed=3")[1]
    assert before["codebooks.npy"] == (folder / "codebooks.npy").read_bytes()
    shutil.rmtree(folder)
    assert distil(tmp_path, *coded, "seed=2")[1] and distil(tmp_path, *coded, "seed=1")[1] == expected


def test_two_ranks_store_what_one_does_and_finish_for_each_other(root, tmp_path, capsys):
    """Of three streams of two teachers' worth of work; a rank that breaks ends the run, and is made up for."""
    expected = distil(root, "loss=kd_hidden")[1]
    distil(tmp_path, "loss=supervised")
    command = [*SMALL, f"root={tmp_path}", "loss=kd_hidden"]
    (tmp_path / "breaks.py").write_text(BREAKS)
    on_two_ranks(str(tmp_path / "breaks.py"), "1", "distill", *command, code=1)
    there = sorted(folder for folder in tmp_path.glob("targets/digits-*"))
    assert len(there) == 3 and list(there[0].glob("part-1-*.json"))  # what had come before it broke
    for folder in there:
        assert json.loads((folder / "status.json").read_text())["state"] != "done"
    assert "of 40 utterances are there already" in on_two_ranks("-m", "rkd", "distill", *command)
    assert len(same_targets(root, tmp_path)) == 3
    for folder in there:  # as if the second of two ranks had been killed before it wrote anything
        for part in folder.glob("part-1-*"):
            part.unlink()
    losses = distil(tmp_path, "loss=kd_hidden", "trainer.accumulate=1", "name=again")[1]
    assert "20 of 40 utterances are there already" in capsys.readouterr().err
    assert len(same_targets(root, tmp_path)) == 3
    equal(losses, expected, 2e-3)


def test_a_damaged_part_is_made_again(root, tmp_path, capsys):
    folder, expected = distil(tmp_path)
    [store] = [f for f in tmp_path.glob("targets/*") if (f / "card.json").is_file()]
    [part] = store.glob("part-*.npy")
    os.truncate(part, part.stat().st_size - 9)
    shutil.rmtree(folder)
    equal(distil(tmp_path)[1], expected, 1e-6)
    assert f"{part.name} is damaged, and is made again" in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize(
    "changes, why",
    [
        (["loss=kd_attention"], "loss.terms.attention compares more than logits and hidden layers"),
        (["loss.teacher_input=noisy"], "loss.teacher_input=noisy"),
        (["loss.terms.soft.temperature={from:4,to:1}"], "loss.terms.soft has no fixed temperature"),
        (["targets.sample=64", "loss.terms.soft.divergence=js"], "is of no divergence that draws estimate"),
        (["loss.on_policy=0.5"], "loss.on_policy=0.5"),
        (["loss=kd_hidden", "targets.max_bytes=1e4"], "GB are more than targets.max_bytes=1e+04"),
        (["trainer.steps=1", "trainer.batch_seconds=20"], "20 s of batches are less than the corpus's"),
    ],
)
def test_what_stays_live_is_said(root, capsys, changes, why):
    assert distil(root, *changes)[1]
    said = capsys.readouterr().err
    assert "the teacher hears every batch: " in said and why in said


def test_a_store_of_other_labels_is_refused(tmp_path):
    """One that was tampered with: the labels are part of a folder's name."""
    folder, _ = distil(tmp_path)
    for told in folder.parents[1].glob("targets/*/part-*.json"):
        about = json.loads(told.read_text())
        about["ids"] = about["ids"][::-1]
        told.write_text(json.dumps(about))
    with pytest.raises(DataError, match="are of other labels"):
        distil(tmp_path, "seed=9")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_pages_commands_run(root, command):
    _, stage, *overrides = shlex.split(command, comments=True)
    assert stage == "distill" and distil(root, *overrides)[1]
