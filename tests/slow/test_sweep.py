"""A sweep through the real command: side by side, what is shared built once, failures and all."""

import json
import subprocess

import pytest
from slow_runs import command, environment, rkd

pytestmark = pytest.mark.slow


def test_runs_side_by_side_build_what_they_share_once(tmp_path):
    pytest.importorskip("joblib")
    arguments = ["distill", "-m", "student=tiny,base", "trainer.steps=2", "launcher=joblib", "launcher.n_jobs=2"]
    done = subprocess.run(
        command(*arguments), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    folders = done.stdout.split()
    assert [folder.rpartition("/")[2].partition("-")[0] for folder in folders] == ["tiny", "base"]
    for stage, n in (("prepare", 1), ("train-teacher", 1), ("distill", 2)):
        states = [json.loads(p.read_text())["state"] for p in tmp_path.glob(f"runs/{stage}/*/status.json")]
        assert states == ["done"] * n, stage
    logs = "".join(path.read_text() for path in tmp_path.glob("runs/sweeps/*/*.log"))
    assert "waiting for runs/prepare" in logs or "waiting for runs/train-teacher" in logs
    table = next(tmp_path.glob("runs/sweeps/*/summary.tsv")).read_text()
    assert table.count("\tdone\t") == 2

    # The same again, with a value that fails when it is run: what is finished is used, and the failure is told.
    again = subprocess.run(
        command(*arguments[:2], "student=tiny", "trainer.steps=2", "student.init=random,teacher"),
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0 and again.stdout.split()[0] == folders[0] and "exists, nothing to do" in again.stderr


def test_a_second_run_for_the_same_folder_is_refused(tmp_path):
    rkd(tmp_path, "train-teacher")
    slow = [*command("distill"), "trainer.steps=400", "trainer.validate_every=400"]
    first = subprocess.Popen(slow, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        while not list(tmp_path.glob("runs/distill/*/status.json")):
            assert first.poll() is None
        second = subprocess.run(slow, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=100)
    finally:
        first.terminate()
        first.communicate(timeout=100)
    assert second.returncode == 5 and "another process builds runs/distill/" in second.stderr
    assert first.returncode == 75
