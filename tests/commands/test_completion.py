"""`rkd completion`: the words for a command line, and the scripts in the shells that are there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rkd as package
from rkd.commands import keys
from rkd.commands.completion import SCRIPTS, complete
from rkd.commands.help import COMMANDS, STAGES
from rkd.config.folders import group_files

SOURCE = Path(package.__file__).parents[1]


@pytest.fixture(autouse=True)
def work_in(tmp_path, monkeypatch):
    keys._text.cache_clear()
    monkeypatch.chdir(tmp_path)
    for name in ("runs/distill/tiny-1", "my speech", "rooms"):
        Path(name).mkdir(parents=True)
    Path("list.csv").touch()
    yield
    keys._text.cache_clear()


def words(line):
    """Complete a line as it is typed after `rkd`, a space at its end being the start of a new word."""
    return complete(line.split(" "))


def test_stages_and_commands_come_first():
    assert words("") == [*STAGES, *COMMANDS, "--help", "--version"]
    assert words("di") == ["distill"] and words("zz") == [] and words("zz x") == []


def test_a_stage_is_followed_by_groups_and_keys():
    found = words("distill ")
    assert {"student=", "loss=", "noise@teacher.noise=", "seed=", "trainer.", "noise."} <= set(found)
    assert "data.path=" not in found  # level by level
    assert not {word for word in words("prepare ") if word.startswith(("student", "trainer", "seed"))}


EXPERIMENTS = [*sorted(file.stem for file in (SOURCE / "conf/experiment").glob("*.yaml")), "null"]


@pytest.mark.parametrize(
    "line, found",
    [
        ("distill student=ctc_", ["student=ctc_base", "student=ctc_small", "student=ctc_tiny"]),
        ("distill noise@teacher.noise=whi", ["noise@teacher.noise=white"]),
        (
            "distill experiment=",
            [f"experiment={e}" for e in EXPERIMENTS],
        ),
        ("distill trainer.st", ["trainer.steps="]),
        ("distill trainer.schedule=", [f"trainer.schedule={word}" for word in ("cosine", "linear", "constant")]),
        ("distill build=n", ["build=never"]),
        ("distill noise.snr_range=", ["noise.snr_range=null"]),
        ("distill trainer.steps=", []),
        (
            "distill noise.types.w",
            ["noise.types.white._target_=", "noise.types.white.db_per_octave=", "noise.types.white.weight="],
        ),
        ("distill noise=none noise.types.", []),
        ("distill loss.terms.hid", []),
        ("distill loss=kd_hidden loss.terms.hidden.d", ["loss.terms.hidden.distance="]),
        (
            "distill student=ctc_tiny teacher.loss.terms.",
            ["teacher.loss.terms.ctc.", "teacher.loss.terms.labels."],
        ),
        ("evaluate ~evaluate.types.pi", ["~evaluate.types.pink", "~evaluate.types.pink."]),
        ("distill +trainer.ste", ["+trainer.steps="]),
        (
            "prepare data=folder data.path=",
            ["data.path=list.csv", "data.path=my speech/", "data.path=rooms/", "data.path=runs/"],
        ),
        ("prepare noise.rooms=r", ["noise.rooms=rooms/", "noise.rooms=runs/"]),
        (
            "distill noise.folder=",
            ["noise.folder=null", "noise.folder=my speech/", "noise.folder=rooms/", "noise.folder=runs/"],
        ),
        ("train-teacher --", ["--help", "--multirun"]),
        ("distill --multirun launcher=jo", ["launcher=joblib"]),
        ("distill student=tiny,ctc_b", ["student=tiny,ctc_base"]),
        ("ls ", ["my speech/", "rooms/", "runs/"]),
        ("ls --sta", ["--stage", "--state"]),
        ("ls --state d", ["done", "damaged"]),
        ("ls runs --js", ["--json"]),
        ("show ru", ["runs/"]),
        ("show di", ["distill"]),
        ("show distill student=ti", ["student=tiny"]),
        ("show runs/distill/", ["runs/distill/tiny-1/"]),
        ("show runs/distill/tiny-1 s", []),
        ("check ev", ["evaluate"]),
        ("check distill student=ti", ["student=tiny"]),
        ("listen noise=whi", ["noise=white"]),
        ("listen --split t", ["train", "test"]),
        ("listen --out ro", ["rooms/"]),
        ("listen --clips ", []),
        ("completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_a_word_becomes(line, found):
    assert words(line) == found


def test_the_users_folder_adds_choices_and_keys(tmp_path, monkeypatch):
    for name, text in {
        "noise/cafe": "defaults: [_common, _self_]\ntypes: {cups: {_target_: x.Y, clinks: 3}}\n",
        "trainer/default": "steps: 1\nmine: 2\n",
        "experiment/big": "# @package _global_\ntrainer: {huge: 1}\n",
    }.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("RKD_CONF", str(tmp_path / "conf"))
    assert words("distill noise=ca") == ["noise=cafe"]
    assert words("distill noise=cafe noise.types.cups.c") == ["noise.types.cups.clinks="]
    assert words("distill trainer.") == ["trainer.mine=", "trainer.steps="]
    assert "trainer.huge=" in words("distill experiment=big trainer.")


def test_every_word_of_a_line_is_completed_without_a_library_to_wait_for():
    code = (
        "import sys; from rkd.cli import main; main(['completion', '--words', 'distill', 'trainer.'])\n"
        "print({m for m in ('torch', 'hydra', 'omegaconf', 'yaml', 'numpy', 'rich') if m in sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert found.stdout.splitlines()[-1] == "set()" and "trainer.steps=" in found.stdout


def environment():
    return {**os.environ, "PYTHONPATH": str(SOURCE)}


@pytest.fixture
def bash(tmp_path):
    """Complete a line, as the words that bash makes of it, in a real bash."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    command = tmp_path / "bin" / "rkd"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rkd "$@"\n')
    command.chmod(0o755)

    def run(*line):
        script = (
            'source <(rkd completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
            '_rkd; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        found = subprocess.run(
            ["bash", "--norc", "-c", script, "bash", "rkd", *line],
            capture_output=True, text=True, timeout=60,
            env=environment() | {"PATH": f"{command.parent}:{os.environ['PATH']}"},
        )  # fmt: skip
        assert found.stderr == ""
        return found.stdout.split("\n")[:-1]

    return run


@pytest.mark.parametrize(
    "line, found",
    [
        (["dis"], ["distill"]),
        (["distill", "stude"], ["student=", "student."]),
        (["distill", "student", "=", "ti"], ["tiny"]),  # as bash splits it
        (["distill", "student", "="], sorted(group_files("student"))),
        (["distill", "student=ti"], ["tiny"]),  # readline replaces what follows =
        (["prepare", "noise", "@", "teacher.noise", "=", "whi"], ["white"]),
        (["distill", "student", "=", "tiny", "trainer.st"], ["trainer.steps="]),
        (["prepare", "data.path", "=", "my"], ["my\\ speech/"]),
        (["distill", "-m", "student", "=", "tiny,sm"], ["tiny,small"]),
        (["listen", "--split", "va"], ["validation"]),
        (["zz", ""], [""]),
    ],
)
def test_bash_completes(bash, line, found):
    assert bash(*line) == found


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_is_one_that_its_shell_can_read(rkd, shell):
    said = rkd("completion", shell)
    assert said.code == 0 and "completion --words" in said.out
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    assert subprocess.run([shell, "-n"], input=said.out, text=True, capture_output=True).stderr == ""


@pytest.mark.parametrize(
    "arguments, part",
    [([], "name a shell: rkd completion bash | zsh | fish"), (["bsh"], "nearest: bash"), (["bash", "x"], "argument x"),
     (["tcsh"], "(choose from 'bash', 'zsh', 'fish'); see"),
     (["--shell"], "unknown option --shell")],
)  # fmt: skip
def test_a_wrong_call_says_what_would_be_right(rkd, arguments, part):
    said = rkd("completion", *arguments)
    assert said.code == 2 and said.out == "" and part in said.err and len(said.err.splitlines()) == 1


def test_a_folder_without_permission_completes_nothing(locked):
    assert words(f"prepare data.path={locked}/") == []


def test_only_a_pretrained_choice_starts_from_pretrained_weights():
    assert words("distill student=tiny student.init=") == ["student.init=random", "student.init=teacher"]
    assert "student.init=pretrained" in words("distill student=whisper-tiny student.init=")
