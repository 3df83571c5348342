"""The commands beside real stages: a training that is watched and killed, clips of the embedded corpus."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["experiment=smoke", "data.n_train=40", "data.n_validation=6", "data.n_test=8", "teacher=tiny", "device=cpu"]


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "rkd", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rkd(folder, *arguments):
    process = start(folder, *arguments)
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0 and "Traceback" not in said, said
    return out


def states(folder):
    return {run["stage"]: run["state"] for run in json.loads(rkd(folder, "ls", "--json"))}


def test_a_training_that_was_killed_is_interrupted(tmp_path):
    process = start(tmp_path, "train-teacher", *SMALL, "teacher.trainer.steps=100000")
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not list(tmp_path.glob("runs/train-teacher/*/metrics.jsonl")):
        time.sleep(0.1)
    assert states(tmp_path) == {"prepare": "done", "train-teacher": "running"}
    process.kill()
    process.communicate()
    assert states(tmp_path)["train-teacher"] == "interrupted"


def test_clips_of_the_embedded_corpus(tmp_path):
    folder = Path(rkd(tmp_path, "listen", *SMALL, "--clips", "3").removesuffix("\n"))
    assert len(list((tmp_path / folder).glob("*/noisy.wav"))) == 3
    assert (tmp_path / folder / "spectrograms.png").is_file()


def test_what_was_checked_is_what_is_built(tmp_path):
    checked = rkd(tmp_path, "check", "prepare", *SMALL)
    shown = rkd(tmp_path, "show", "prepare", *SMALL)
    built = rkd(tmp_path, "prepare", *SMALL).strip()
    assert f"to build  {built}\n" in checked and f"# missing      {built}\n" in shown
    assert f"exists    {built}\n" in rkd(tmp_path, "check", "prepare", *SMALL)
