"""The shell lines of pages that need no data run as they are written, with `rkd` in its smallest form."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from slow_runs import ROOT, SMALL, environment

pytestmark = pytest.mark.slow

BLOCKS = [
    pytest.param(block, id=f"{page}-{n}")
    for page in ("ci", "sweeps")
    for n, block in enumerate(re.findall(r"```bash\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an `rkd` that adds what makes a run small, and is found first."""
    folder = tmp_path_factory.mktemp("docs")
    words = " ".join(map(shlex.quote, [*SMALL, "trainer.steps=2", "device=cpu"]))
    (folder / "bin").mkdir()
    (folder / "bin/rkd").write_text(f'#!/bin/sh\nexec {sys.executable} -m rkd "$@" {words}\n')
    (folder / "bin/rkd").chmod(0o755)
    (folder / "bin/python").symlink_to(sys.executable)
    return folder


@pytest.mark.parametrize("block", BLOCKS)
def test_the_lines_run(block, folder):
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", block.replace("n_trials=6", "n_trials=2")],
        cwd=folder, env={**environment(), "PATH": path}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout and "Traceback" not in done.stderr
    for run in re.findall(r"^runs/\S+$", done.stdout, re.MULTILINE):
        assert '"state": "done"' in Path(folder, run, "status.json").read_text()
