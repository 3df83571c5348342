"""What the comparisons in this folder share: running `rkd`, and means over seeds with their intervals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy import stats


def rkd(stage: str, overrides: Iterable[str], threads: int | None = None) -> Path:
    """Run a stage and return its folder; what it says goes to stderr.

    Args:
        threads: of torch; None: as many as there are cores.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else None
    command = [sys.executable, "-m", "rkd", stage, *overrides]
    return Path(subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout.strip())


def best_validation(run: Path) -> float:
    """Return the validation word error rate of what a training ended with, the best of its last phase."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["validation_wer"] for line in lines if line.get("best")][-1]


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return mean and 95% t interval over seeds; no interval for a single one."""
    mean, n = float(values.mean()), len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return mean, mean - half, mean + half
