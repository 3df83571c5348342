"""Whole stages through the real command: all four built at once, reused, stopped and continued, refused."""

import json
import signal
import subprocess
import sys
import time

import pytest
from slow_runs import SMALL, command, environment, rkd

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    run, said = rkd(folder, "evaluate")
    return folder, run, said


def test_one_command_does_all_four_stages(evaluated):
    folder, run, said = evaluated
    assert run.parent.name == "evaluate" and len(said.split("to build")) == 5
    states = {
        path.parent.parent.name: json.loads(path.read_text())["state"] for path in folder.glob("runs/*/*/status.json")
    }
    assert states == dict.fromkeys(["prepare", "train-teacher", "targets", "distill", "evaluate"], "done")
    for path in folder.glob("runs/*/*"):
        assert {"config.yaml", "overrides.txt", "environment.json", "status.json"} <= {p.name for p in path.iterdir()}
    results = json.loads((run / "results.json").read_text())
    assert [s["role"] for s in results["systems"]] == ["teacher", "student"]
    for system in results["systems"]:
        assert [(c["condition"], c["noise"], c["snr_db"]) for c in system["conditions"]] == [
            ("clean", None, None), ("noise", "white", 5.0), ("noise only", "white", 0.0)
        ]  # fmt: skip
        assert all(c["n_utterances"] == 8 for c in system["conditions"])
        assert [c["wer"] is None for c in system["conditions"]] == [False, False, True]
        assert system["conditions"][-1]["words_on_noise"] >= 0
    assert "<html" in (run / "report.html").read_text()[:500].lower() and (run / "utterances.parquet").stat().st_size
    student = next(folder.glob("runs/distill/*"))
    steps = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert sum("validation_wer" in line for line in steps) == 2
    assert set(next(line["loss"] for line in steps if "loss" in line)) == {"labels", "ctc", "soft"}


@pytest.mark.gpu
def test_all_four_stages_on_a_gpu(tmp_path):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    run, _ = rkd(tmp_path, "evaluate", "teacher.trainer.precision=fp16", device="cuda")
    results = json.loads((run / "results.json").read_text())
    wers = [c["wer"] for system in results["systems"] for c in system["conditions"] if c["condition"] != "noise only"]
    assert wers and None not in wers


def test_a_second_call_reuses_everything(evaluated):
    folder, run, _ = evaluated
    files = {path: path.stat().st_mtime_ns for path in folder.glob("runs/**/*") if path.is_file()}
    again, said = rkd(folder, "evaluate")
    assert again == run and "nothing to do" in said
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/**/*") if path.is_file()} == files


def test_a_sweep_trains_one_teacher(evaluated):
    folder, *_ = evaluated
    changes = [["noise.snr=[0,5]"], ["loss=kd_hidden", "seed=1"], ["student=base"]]
    runs = {rkd(folder, "distill", *change, "trainer.steps=2")[0] for change in changes}
    assert len(runs) == 3 and len(list(folder.glob("runs/train-teacher/*"))) == 1
    assert len(list(folder.glob("runs/prepare/*"))) == 1


def test_the_teacher_is_unchanged_by_a_distillation(evaluated):
    """Its files; that its weights in memory stay as they are is a quick test of the trainer."""
    folder, *_ = evaluated
    teacher = next(folder.glob("runs/train-teacher/*/model/model.safetensors"))
    before = teacher.read_bytes()
    rkd(folder, "distill", "seed=9", "trainer.steps=2")
    assert teacher.read_bytes() == before


def test_stopped_and_continued_equals_uninterrupted(evaluated):
    folder, *_ = evaluated
    longer = ["trainer.steps=40", "trainer.validate_every=20", "student.dropout=0.1"]
    process = subprocess.Popen(
        command("distill", *longer, "name=cut"), cwd=folder, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        metrics = next(iter(folder.glob("runs/distill/cut-*/metrics.jsonl")), None)
        if metrics or list(folder.glob("runs/distill/cut-*/checkpoints")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 75 and "the same command goes on" in said, said
    status = json.loads(next(folder.glob("runs/distill/cut-*/status.json")).read_text())
    assert status["state"] == "interrupted"
    cut, _ = rkd(folder, "distill", *longer, "name=cut")
    uncut, _ = rkd(folder, "distill", *longer, "name=uncut")
    assert (cut / "model/model.safetensors").read_bytes() == (uncut / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["distill", "build=never", "seed=77"], 2, "build=never"),
        (["distill", "trainer.step=3"], 2, "trainer.steps"),
        (["distill", "teacher.path=nowhere"], 4, "nowhere"),
        (["prepare", "data=folder", "data.path=nowhere"], 3, "nowhere"),
    ],
)
def test_expected_errors_are_a_line_and_an_exit_code(evaluated, arguments, code, message):
    folder, *_ = evaluated
    small = [a for a in SMALL if not a.startswith(("experiment", "data."))] if "data=folder" in arguments else SMALL
    done = subprocess.run(
        [sys.executable, "-m", "rkd", *arguments, *small, "device=cpu"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr and not done.stdout
    assert len(done.stderr.strip().splitlines()) <= 12
