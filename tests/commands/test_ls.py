"""`rkd ls`: states that are true, figures that are the report's, and nothing that a damaged folder could break."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rkd as package
from rkd.report import mean_noisy
from rkd.runs import Step, recorded


def conditions(clean, *noisy):
    return [{"condition": "clean", "wer": clean}, *({"condition": "noise", "wer": wer} for wer in noisy)]


def rows(said):
    header, *lines = (line.split("\t") for line in said.out.splitlines())
    assert header == ["stage", "name", "state", "age", "figures"]
    return [dict(zip(header, line, strict=True)) for line in lines]


def only(said):
    [row] = rows(said)
    return row


@pytest.fixture(autouse=True)
def work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_training_shows_its_progress_and_its_best_validation(rkd, make_training):
    make_training(started=time.time() - 7200)
    row = only(rkd("ls"))
    assert row == {
        "stage": "distill", "name": "tiny-12345678", "state": "done", "age": "2 h 00 min",
        "figures": "step 15/20, WER 25.0%",
    }  # fmt: skip
    [found] = json.loads(rkd("ls", "--json").out)
    assert found["figures"] == {"step": 15, "steps": 20, "best_validation_wer": 0.25}


def test_a_teacher_has_a_number_of_steps_of_its_own(rkd, make_training):
    make_training("train-teacher")
    assert only(rkd("ls"))["figures"] == "step 15/40, WER 25.0%"


def test_a_validation_that_is_not_a_number_is_no_best(rkd, make_training):
    make_training(wers=(float("nan"), 1e-05))
    assert json.loads(rkd("ls", "--json").out)[0]["figures"]["best_validation_wer"] == 1e-05


def test_each_phase_has_a_best_and_the_last_ones_is_the_result(rkd, make_training):
    folder = make_training(wers=(0.2, 1e-05))
    with (folder / "metrics.jsonl").open("a") as metrics:
        for wer, best in ((0.4, True), (0.3, True), (0.35, False)):
            metrics.write(json.dumps({"step": 15, "validation_wer": wer, "best": best}) + "\n")
    assert json.loads(rkd("ls", "--json").out)[0]["figures"]["best_validation_wer"] == 0.3


def test_an_evaluation_shows_the_means_of_its_report(rkd, make_run):
    systems = [
        {"role": "teacher", "conditions": conditions(0.02, 0.1, 0.2)},
        {"role": "student", "conditions": conditions(0.05, 0.2, None, 0.4)},
        {"role": "baseline", "conditions": conditions(0.5)},
    ]
    for system in systems:
        for condition in system["conditions"]:
            condition["n_words"] = 10
    make_run("evaluate", results_json={"systems": systems})
    said = only(rkd("ls"))["figures"]
    assert said == "student 5.0% clean, 30.0% noisy; teacher 2.0% clean, 15.0% noisy"
    [found] = json.loads(rkd("ls", "--json").out)
    assert found["figures"]["student_noisy_wer"] == mean_noisy(systems[1]).wer


@pytest.mark.parametrize(
    "splits, figures",
    [
        ({"train": {"utterances": 9, "hours": 1.5}, "test": {"utterances": 1, "hours": 0.5}}, "2.00 h, 10 utterances"),
        ({"train": {"clips": 4, "hours": 0.25, "labels": []}}, "0.25 h, 4 clips"),
        ({"train": {"rooms": 2, "responses": 5}, "test": {"rooms": 1, "responses": 1}}, "6 responses of 3 rooms"),
    ],
)
def test_a_store_shows_what_is_in_it(rkd, make_run, splits, figures):
    make_run("prepare", summary_json={"splits": splits})
    assert only(rkd("ls"))["figures"] == figures


# ---- states ----


def test_a_running_process_is_running(rkd, make_run):
    make_run(state="running", started=time.time())
    assert only(rkd("ls"))["state"] == "running"


def test_a_step_tells_which_process_builds_it(rkd, tmp_path):
    with recorded(Step(tmp_path / "runs", "distill", "a", 1, {}, [], lambda folder: None), "", []) as folder:
        assert only(rkd("ls"))["state"] == "running"
        status = json.loads((folder / "status.json").read_text())
        assert (status["host"], status["pid"]) == (platform.node(), os.getpid())
    assert only(rkd("ls"))["state"] == "done"


def test_a_run_whose_process_is_gone_was_interrupted(rkd, make_run):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    make_run(state="running", status={"pid": gone.pid})
    assert only(rkd("ls"))["state"] == "interrupted"


def test_a_later_process_with_the_same_number_is_another(rkd, make_run):
    make_run(state="running", started=time.time() - 1e7)  # this process is younger than that
    assert only(rkd("ls"))["state"] == "interrupted"


@pytest.mark.parametrize("status", [{"host": "elsewhere"}, {"host": None, "pid": None}, {"pid": -1}, {"pid": "x"}])
def test_a_process_that_cannot_be_asked_runs_while_it_writes(rkd, make_run, status):
    folder = make_run(state="running", status=status)
    assert only(rkd("ls"))["state"] == "running"
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    assert only(rkd("ls"))["state"] == "interrupted"


def test_a_failed_run_shows_why_in_one_line(rkd, make_training):
    make_training(state="failed", status={"error": "the loss is\nnot finite"})
    assert only(rkd("ls"))["figures"] == "the loss is not finite"


# ---- filters ----


def test_filters_choose(rkd, make_run):
    make_run("distill", "a-1", started=1e9)
    make_run("distill", "b-2", "failed", started=3e9)
    make_run("prepare", "c-3", started=2e9)
    assert [row["name"] for row in rows(rkd("ls"))] == ["a-1", "c-3", "b-2"]  # the oldest first
    assert [row["name"] for row in rows(rkd("ls", "--stage", "distill"))] == ["a-1", "b-2"]
    assert [row["name"] for row in rows(rkd("ls", "--failed"))] == ["b-2"]
    assert [row["name"] for row in rows(rkd("ls", "runs/distill", "--state", "done"))] == ["a-1"]
    assert [row["name"] for row in rows(rkd("ls", "runs/distill/a-1"))] == ["a-1"]
    said = rkd("ls", "--stage", "evaluate")
    assert said.out == "" and "no such runs in runs" in said.err and said.code == 0


def test_the_root_is_the_one_of_the_users_configuration(rkd, make_run, tmp_path, monkeypatch):
    make_run()
    (tmp_path / "runs").rename(tmp_path / "mine")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("root: mine\n")
    monkeypatch.setenv("RKD_CONF", str(tmp_path / "conf"))
    assert only(rkd("ls"))["name"] == "tiny-12345678"


# ---- what could go wrong ----


@pytest.mark.parametrize(
    "status",
    ["", "{", "[]", "null", '{"state": 3}', '{"state": "done?"}', '{"state": "running", "started": "now"}', "["],
)
def test_a_damaged_status_is_said(rkd, make_run, status):
    folder = make_run()
    (folder / "status.json").write_text(status)
    assert only(rkd("ls"))["state"] == "damaged"


@pytest.mark.parametrize("stage", ["prepare", "train-teacher", "distill", "evaluate", "transcribe", "something else"])
@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"systems": 3, "splits": 3}', '{"step": 1, "loss": {}', "\x00\xff"]
)
def test_damaged_figures_are_left_out(rkd, make_run, stage, content):
    files = ("summary_json", "results_json", "metrics_jsonl", "config_yaml")
    make_run(stage, **dict.fromkeys(files, content))
    row = only(rkd("ls"))
    assert row["state"] == "done" and not row["figures"].replace("step 1/?", "")


def test_foreign_folders_are_no_runs(rkd, make_run, tmp_path):
    make_run()
    for name in ("listen/digits/clip", "notes", ".git"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "file").write_text("x")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "dangling").symlink_to("nowhere")
    assert {row["name"] for row in rows(rkd("ls"))} == {"tiny-12345678"}


def test_an_empty_folder_has_no_runs(rkd):
    assert (rkd("ls").code, rkd("ls").out) == (0, "") and "no runs in runs" in rkd("ls").err
    assert json.loads(rkd("ls", "--json").out) == []


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["nowhere"], "there is no folder nowhere"),
        (["--stat", "done"], "unknown option --stat; nearest: --sta"),
        (["--state", "don"], "nearest: done"),
        (["--state"], "expected one argument"),
        (["a", "b"], "unknown argument b"),
    ],
)
def test_a_wrong_call_is_one_line(rkd, arguments, part):
    said = rkd("ls", *arguments)
    assert said.code == 2 and said.out == "" and part in said.err and len(said.err.splitlines()) == 1


def test_a_folder_without_permission(rkd, make_run, locked):
    said = rkd("ls", locked)
    assert said.code == 5 and "no permission" in said.err
    make_run()
    assert only(rkd("ls", locked.parent / "runs"))["state"] == "done"


def test_a_terminal_gets_aligned_columns(rkd, make_training, monkeypatch):
    make_training()
    make_training(state="failed", name="a-longer-name-12345678", status={"error": "[red]no[/red] disk"})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = rkd("ls").out.splitlines()
    assert len({line.index(word) for line, word in zip(lines, ("state", "done", "failed"), strict=False)}) <= 2
    assert "[red]no[/red] disk" in "".join(lines)


def test_neither_torch_nor_hydra_nor_yaml_is_imported(make_training, tmp_path):
    make_training()
    code = (
        "import sys; from rkd.cli import main; main(['ls'])\n"
        "print({m for m in ('torch', 'hydra', 'yaml', 'numpy', 'pandas', 'rich') if m in sys.modules})"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert found.stdout.splitlines()[-1] == "set()" and "tiny-12345678" in found.stdout


def test_a_finished_run_that_lost_a_file_is_damaged(rkd, make_run):
    folder = make_run(status={"files": {"report.html": 3, "results.json": 2}}, report_html="abc")
    found = only(rkd("ls"))
    assert found["state"] == "damaged" and found["figures"].startswith("results.json is missing; remove the folder")
    (folder / "results.json").write_text("{}")
    assert only(rkd("ls"))["state"] == "done"
