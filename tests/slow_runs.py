"""The real command in its smallest form, for the slow tests."""

import os
import subprocess
import sys
from pathlib import Path

SMALL = [
    "experiment=smoke", "data.n_train=40", "data.n_validation=6", "data.n_test=8", "data.length=[1,3]",
    "trainer.steps=6", "trainer.validate_every=3", "trainer.validate_utterances=4", "trainer.batch_seconds=15",
    "log_every=1",
    *(f"teacher.trainer.{x}" for x in ("steps=4", "validate_every=2", "validate_utterances=4", "batch_seconds=15")),
    "teacher=tiny", "noise=white", "noise@teacher.noise=white", "~evaluate.types.pink",
    "~evaluate.types.brown", "~evaluate.types.babble", "evaluate.snr=[5]",
]  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]


def command(*arguments, device="cpu"):
    return [sys.executable, "-m", "rkd", *arguments, *SMALL, f"device={device}"]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def rkd(folder, *arguments, code=0, device="cpu"):
    """Run the command in a folder; return the path on stdout and what people read."""
    done = subprocess.run(
        command(*arguments, device=device), cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return (Path(folder, done.stdout.strip()) if done.stdout else None), done.stderr
