"""The command line: help at once, one line for an expected error, and only the run folder on stdout."""

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import rkd
from rkd import cli, console, errors
from rkd.commands import help
from rkd.config import compose
from rkd.config.overrides import parse_override
from rkd.config.tree import select

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(rkd.__file__).parents[1])}


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "rkd", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | environment,
        timeout=60,
    )


@pytest.fixture
def stage_does(monkeypatch):
    """Let the stages do something else, without importing them."""
    console.console.cache_clear()

    def use(action):
        module = types.ModuleType("rkd.stages")
        module.run = action
        monkeypatch.setitem(sys.modules, "rkd.stages", module)
        monkeypatch.setattr(rkd, "stages", module, raising=False)

    return use


def raising(error):
    def run(*_):
        raise error

    return run


def test_help_lists_stages_and_exit_codes():
    found = command("--help")
    assert found.returncode == 0 and found.stderr == ""
    assert all(word in found.stdout for word in [*help.STAGES, *help.COMMANDS, "75"])


def test_help_and_mistakes_need_no_library_beyond_the_configuration():
    code = (
        "import sys; from rkd.cli import main\n"
        "codes = [main(['--help']), main(['distill', '--help'])]\n"
        "print({m for m in ('hydra', 'yaml', 'rich', 'numpy') if m in sys.modules}, file=sys.stderr)\n"
        "codes += [main(['distill', 'trainer.lr=1'])]\n"
        "print(codes, 'torch' in sys.modules, file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    first, error, last = found.stderr.splitlines()
    assert first == "set()"
    assert "trainer.learning_rate" in error
    assert last == "[0, 0, 2] False"


def test_a_configuration_error_takes_one_line():
    found = command("distill", "trainer.lr=1")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "rkd: unknown key trainer.lr; nearest: trainer.learning_rate (a number above 0, at most 1)\n"


@pytest.mark.parametrize("stage", help.STAGES)
def test_help_of_a_stage_shows_its_choices_and_ten_overrides_with_their_defaults(stage, capsys):
    assert cli.main([stage, "--help"]) == 0
    text = capsys.readouterr().out
    assert "fsdd_digits" in text and "_common" not in text
    assert len(help.MOST_USED[stage]) == 10
    default = compose(stage, [])
    for key in help.MOST_USED[stage]:
        written = help.default_of(key)
        assert f"{key}={written}" in text
        if key in ("evaluate.folder",) or isinstance(select_plain(default, key), dict):
            continue
        assert parse_override(f"{key}={written}").value == select_plain(default, key)


def select_plain(config, key):
    from omegaconf import OmegaConf

    return select(OmegaConf.to_container(config), key.partition("@")[2] or key)


def test_defaults_of_groups_are_the_choices_that_hydra_makes():
    from rkd.config import group_choices

    chosen = group_choices([])
    for key in {key for stage in help.STAGES for key in help.GROUPS[stage]}:
        assert help.default_of(key) == (chosen[key] or "null")


def test_help_lists_the_choices_of_the_users_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "cafe.yaml").write_text("# Cups et al. and spoons.  rkd distill noise=cafe\n")
    monkeypatch.setenv("RKD_CONF", str(tmp_path))
    cli.main(["distill", "--help"])
    assert "cafe             Cups et al. and spoons\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["distil"], "nearest: distill"),
        (["student=tiny"], "a stage comes first"),
        (["sho"], "nearest: show"),
        (["distill", "-m", "student=tiny"], "no override has several values"),
        (["distill", "--student=tiny"], "without dashes"),
    ],
)
def test_a_wrong_call_says_what_would_be_right(arguments, part, capsys):
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert part in said.err and said.out == "" and len(said.err.splitlines()) == 1


def test_stdout_holds_the_run_folder_alone(stage_does, capfd):
    def chatter(stage, config, overrides):
        print("python chatter")
        os.write(1, b"C chatter\n")
        subprocess.run(["echo", "a child's chatter"])
        return Path("runs/distill/tiny-12345678")

    stage_does(chatter)
    assert cli.main(["distill", "noise.snr=[0,5]"]) == 0
    said = capfd.readouterr()
    assert said.out == "runs/distill/tiny-12345678\n"
    assert all(word in said.err for word in ("python chatter", "C chatter", "a child's chatter"))


def test_an_override_that_the_stage_does_not_read_is_said(stage_does, capsys):
    stage_does(lambda *_: Path("x"))
    assert cli.main(["train-teacher", "noise.snr=[0]"]) == 0
    assert "train-teacher does not read noise.snr; teacher.noise.snr would do it" in capsys.readouterr().err


OUT_OF_MEMORY = type("OutOfMemoryError", (RuntimeError,), {})


@pytest.mark.parametrize(
    "error, code, part",
    [
        (errors.ConfigError("wrong"), 2, "wrong"),
        (errors.DataError("no audio"), 3, "no audio"),
        (errors.CheckpointError("damaged"), 4, "damaged"),
        (errors.ResourceError("no device"), 5, "no device"),
        (errors.NumericsError("nan"), 6, "nan"),
        (errors.Interrupted("saved"), 75, "saved"),
        (KeyboardInterrupt(), 75, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 5, "disk is full (runs/x)"),
        (PermissionError(errno.EACCES, "Permission denied", "/runs"), 5, "no permission (/runs)"),
        (OSError(errno.EFBIG, "File too large", "a.npy"), 5, "may not grow so large (a.npy)"),
        (MemoryError("of 3 GiB"), 5, "out of memory"),
        (OUT_OF_MEMORY("CUDA out of memory. Tried to allocate 3 GiB"), 5, "trainer.batch_seconds"),
    ],
)
def test_an_expected_error_is_one_line_with_its_exit_code(error, code, part, stage_does, capsys, monkeypatch):
    stage_does(raising(error))
    assert cli.main(["distill"]) == code
    said = capsys.readouterr()
    assert part in said.err and said.out == "" and len(said.err.splitlines()) == 1
    monkeypatch.setenv("RKD_DEBUG", "1")
    assert cli.main(["distill"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_process_that_is_gone_is_no_bug_of_those_that_are_left(stage_does, capsys, monkeypatch):
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    stage_does(raising(gone))
    assert cli.main(["distill"]) == 1
    assert "report" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["distill"]) == 5
    said = capsys.readouterr().err
    assert "another process of this run is gone" in said and len(said.splitlines()) == 1
    backend = type("DistBackendError", (RuntimeError,), {})
    network = type("DistNetworkError", (RuntimeError,), {})
    for error, code in [(RuntimeError("shapes do not fit"), 1), (backend("NCCL error: Duplicate GPU detected"), 1),
                        (backend("NCCL error in x.cpp:77 ... ncclRemoteError: a process exited"), 5),
                        (network("The client socket has failed to connect"), 5)]:  # fmt: skip
        stage_does(raising(error))
        assert cli.main(["distill"]) == code


def test_an_unexpected_error_keeps_its_traceback_and_asks_for_a_report(stage_does, capsys):
    stage_does(raising(ZeroDivisionError("division by zero")))
    assert cli.main(["distill"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "report" in said.splitlines()[-1]


def test_a_closed_pipe_is_quiet():
    reading, writing = os.pipe()
    os.close(reading)
    found = subprocess.run(
        [sys.executable, "-m", "rkd", "distill", "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    os.close(writing)
    assert found.stderr == b""


def test_progress_off_a_terminal_is_a_line_a_validation(capsys):
    console.console.cache_clear()
    with console.Progress("distill", 100) as progress:
        for step in range(1, 51):
            progress.update(step, {"soft": 1.5, "labels": 0.25}, 80.0)
        progress.validated(50, 0.125, 0.12)
        progress.update(51, {"soft": 1.4}, 80.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(part in lines[0] for part in ("step 50/100", "soft 1.5", "labels 0.25", "WER 12.5% (best 12.0%)"))
    assert "step 51/100" in lines[1]


def test_the_last_line_is_said_once(capsys):
    console.console.cache_clear()
    with console.Progress("distill", 20) as progress:
        progress.update(20, {"soft": 1.5}, 80.0)
        progress.validated(20, 0.5, 0.5)
    assert capsys.readouterr().err.count("step 20/20") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--version"], ["show", "prepare"]])
def test_a_stdout_that_cannot_be_written_is_named(arguments):
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "rkd", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
    assert found.returncode == 5 and len(found.stderr.splitlines()) == 1
    assert found.stderr.startswith("rkd: stdout cannot be written: No space left")


def test_progress_on_a_terminal_is_one_live_view(monkeypatch):
    import io

    from rich.console import Console

    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(console, "console", lambda: screen)
    with console.Progress("distill", 100) as progress:
        progress.update(10, {"soft": 1.5}, 80.0)
        progress.validated(10, 0.5, 0.4)
    shown = screen.file.getvalue()
    assert all(part in shown for part in ("distill", "10/100", "steps/s", "soft", "50.0%"))


def test_track_yields_everything_and_says_little(capsys):
    console.console.cache_clear()
    assert list(console.track(range(1000), "reading")) == list(range(1000))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("seconds, text", [(45, "45 s"), (720, "12 min"), (11100, "3 h 05 min"), (9e5, "10 d")])
def test_durations_are_said_as_people_say_them(seconds, text):
    assert console.duration(seconds) == text
