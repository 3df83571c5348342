"""The commands of docs/denoisers.md run, in smoke form, the denoiser that it adds among them."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from rkd.cli import main
from rkd.config.folders import group_files
from rkd.models.base import count_parameters

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "denoisers.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^rkd .+$", PAGE, re.MULTILINE)
TRAINER = ["steps=2", "batch_seconds=12", "validate_every=2", "validate_utterances=4", "clean=0"]
SMALL = [
    "data.n_train=24", "data.n_validation=6", "data.n_test=6", "data.length=[1,3]", "noise=white",
    "noise@teacher.noise=white", "evaluate=trained", "evaluate.snr=[5]", "evaluate.quality_utterances=2", "log_every=1",
    "device=cpu", "teacher=tiny", *(f"trainer.{x}" for x in TRAINER), *(f"teacher.trainer.{x}" for x in TRAINER),
]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A working folder with the package and the YAML that the page shows."""
    folder = tmp_path_factory.mktemp("work")
    for language, pattern in (("python", r"# (my_rkd/\S+)\n"), ("yaml", r"# (my_conf/\S+)\n")):
        for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL):
            path = folder / re.match(pattern, block)[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
    (folder / "my_rkd" / "__init__.py").write_text("")
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_rkd"]:
        del sys.modules[name]


def small(command, work):
    words = shlex.split(command)[1:]
    words = [word for word in words if not word.startswith("runs/")]
    own = SMALL if "student=ctc_tiny" not in words else [w for w in SMALL if w != "teacher=tiny"]
    if "--model" in words:
        words += [str(next(work.glob("runs/distill/*")))]
    return [words[0], *own, *words[1:]]


def test_the_commands_run(work, monkeypatch, capsys):
    assert len(COMMANDS) >= 11
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(work)
    monkeypatch.setenv("RKD_CONF", str(work / "my_conf"))
    for command in COMMANDS:
        code = main(small(command, work))
        said = capsys.readouterr()
        assert not code, f"{command}\n{said.err}"
        assert Path(said.out.strip()).is_dir(), command
    [results] = [json.loads(path.read_text()) for path in work.glob("runs/evaluate/ctc_tiny-*/results.json")]
    student = next(s for s in results["systems"] if s["role"] == "student")
    assert student["family"] == "mask + ctc"
    heard = [c for c in student["conditions"] if c["condition"] != "noise only"]
    assert heard and all(c["denoised_si_sdr"] is not None for c in heard if c["condition"] == "noise")


@pytest.mark.parametrize("choice", [name for name in group_files("denoiser") if name != "none"])
def test_the_page_says_how_large_each_is(choice):
    from rkd import assemble
    from rkd.config import compose, instantiate

    node = compose("distill", [f"denoiser={choice}", "loss=supervised"]).denoiser
    made = instantiate(assemble.arguments(node, "denoiser"), [])
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{choice}` |"))
    assert f"{count_parameters(made):,}" in row
