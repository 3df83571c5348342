"""Run folders as the stages leave them, and the command called as users call it."""

import errno
import json
import math
import os
import platform
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from rkd import cli

TRAINED = (
    "teacher:\n  trainer:\n    accumulate: 1\n    steps: 40\n  seed: 0\ntrainer:\n  batch_seconds: 9\n  steps: 20\n"
)


@pytest.fixture
def rkd(capsys):
    """Call the command; return its exit code and what it printed, and assert that it shows no traceback."""

    def call(*arguments):
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return call


@pytest.fixture
def make_run(tmp_path):
    """Write a run folder below ``runs``; the content of its files may be given."""

    def make(stage="distill", name="tiny-12345678", state="done", started=None, **files):
        folder = tmp_path / "runs" / stage / name
        folder.mkdir(parents=True)
        started = time.time() - 600 if started is None else started
        status = {"state": state, "error": None, "started": started, "seconds": 60.0}
        status |= {"host": platform.node(), "pid": os.getpid()} | files.pop("status", {})
        (folder / "status.json").write_text(json.dumps(status))
        for file, content in files.items():
            (folder / file.replace("_", ".")).write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    return make


@pytest.fixture
def make_training(make_run):
    def make(stage="distill", wers=(0.5, 0.25, 0.3), **more):
        lines = [{"step": 5 * i, "learning_rate": 1e-3, "loss": {"soft": 1.5}} for i in range(1, len(wers) + 1)]
        lowest = math.inf
        for i, wer in enumerate(wers):
            lines.insert(2 * i + 1, {"step": 5 * i + 5, "validation_wer": wer, "best": wer < lowest})
            lowest = wer if wer < lowest else lowest
        text = "".join(json.dumps(line) + "\n" for line in lines)
        return make_run(stage, metrics_jsonl=text, config_yaml=TRAINED, **more)

    return make


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder without any permission; for root, whom nothing stops, one that acts so."""
    folder = tmp_path / "locked"
    folder.mkdir()

    def refusing(function):
        def refuse(path, *arguments, **more):
            if str(path).startswith(str(folder)):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(path, *arguments, **more)

        return refuse

    if os.geteuid() == 0:
        for name in ("scandir", "mkdir", "listdir"):
            monkeypatch.setattr(os, name, refusing(getattr(os, name)))
        access = os.access
        monkeypatch.setattr(
            os, "access", lambda path, mode: not str(path).startswith(str(folder)) and access(path, mode)
        )
    folder.chmod(0)
    yield folder
    folder.chmod(0o700)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """Small recordings: speech with texts, noise of two classes, rooms."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    names = [
        *(f"speech/{i:02d}.wav" for i in range(30)),
        *(f"noise/{kind}/{i}.wav" for kind in ("rain", "street") for i in range(5)),
        *(f"rooms/{i}.wav" for i in range(3)),
    ]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        n = int(rng.integers(8000, 16000))
        x_T = rng.standard_normal(n) * (np.exp(-np.arange(n) / 800) if "rooms" in name else np.hanning(n))
        soundfile.write(path, 0.1 * x_T, 16000)
        if "speech" in name:
            path.with_suffix(".txt").write_text("one two")
    return folder


@pytest.fixture
def overrides(recordings, tmp_path):
    """A configuration of these recordings."""
    return [
        "data=folder",
        f"data.path={recordings}/speech",
        "data.fractions=[0.6,0.2,0.2]",
        "noise=recorded_reverb",
        f"noise.folder={recordings}/noise",
        f"noise.rooms={recordings}/rooms",
        "noise@teacher.noise=white",
        "device=cpu",
        f"root={tmp_path}/runs",
    ]
