"""Every command of docs/noise.md runs, in its smallest form, on small copies of the sets."""

import re
import shlex
import sys
from pathlib import Path

import noise_sets
import pytest

from rkd import stages
from rkd.config import compose
from rkd.config.folders import group_files

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "noise.md").read_text()
COMMANDS = re.findall(r"^rkd .+$", PAGE, re.MULTILINE)
FILES = re.findall(r"```\w+\n# (\S+/\S+)\n(.*?)```", PAGE, re.DOTALL)
SMALL = ["data.n_train=24", "data.n_validation=6", "data.n_test=6", "data.length=[1,3]", "noise.simulated.rooms=3",
         "student=ctc_tiny", "trainer.steps=2", "trainer.batch_seconds=12", "trainer.validate_every=2",
         "trainer.validate_utterances=4", "trainer.clean=0",
         *(f"teacher.trainer.{x}" for x in ("steps=2", "batch_seconds=12", "validate_every=2",
         "validate_utterances=4")),
         "evaluate.quality_utterances=0", "log_every=1", "device=cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """What stands for /data in the page."""
    folder = tmp_path_factory.mktemp("data")
    for name, make in {**noise_sets.SETS, "recordings": noise_sets.recordings, "rir": noise_sets.rir}.items():
        make(folder / name)
    for name, text in FILES:
        path = folder / "user" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "user/my_rkd/__init__.py").touch()
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_runs(command, data, monkeypatch):
    monkeypatch.syspath_prepend(data / "user")
    monkeypatch.setenv("RKD_CONF", str(data / "user/my_conf"))
    _, stage, *overrides = shlex.split(command.replace("/data/", f"{data}/"), comments=True)
    overrides += [f"root={data}/runs", *SMALL]
    folder = stages.run(stage, compose(stage, overrides), overrides)
    assert folder.parent.name == stage
    assert (folder / ("report.html" if stage == "evaluate" else "model")).exists()
    assert '"state": "done"' in (folder / "status.json").read_text()


def test_every_configuration_is_on_the_page():
    chosen = {word.removeprefix("noise=") for c in COMMANDS for word in c.split() if word.startswith("noise=")}
    assert set(group_files("noise")) <= chosen
    chosen = {word.removeprefix("effects=") for c in COMMANDS for word in c.split() if word.startswith("effects=")}
    assert set(group_files("effects")) <= chosen
    assert {name for name, _ in FILES} == {"my_rkd/noise.py", "my_conf/noise/clicks.yaml"}


@pytest.fixture(scope="module", autouse=True)
def forget_the_package():
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_rkd"]:
        del sys.modules[name]
