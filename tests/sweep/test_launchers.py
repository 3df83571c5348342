"""Launchers make all runs, keep their lines apart, and let those in progress save their state when interrupted."""

import os
import signal
import sys
import threading
import time

import pytest

from rkd.errors import Interrupted, ResourceError
from rkd.sweep.launchers import Command, Joblib, Local, Ray, Submitit, passing_on_signals, run_command


def commands(folder, *programs, logs=True):
    return [
        Command(n, [sys.executable, "-c", program], folder / f"{n}.log" if logs else None)
        for n, program in enumerate(programs)
    ]


SPEAKS = "import sys; print('noise'); print('folder-{}'); print('line-{}', file=sys.stderr); sys.exit({})"
PROGRAMS = [SPEAKS.format(n, n, code) for n, code in enumerate([0, 3, 0])]

LAUNCHERS = [
    Local(),
    Joblib(2),
    pytest.param(Submitit("local", {"timeout_min": 2}), marks=pytest.mark.slow),
    pytest.param(Ray(num_cpus=1), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda launcher: type(launcher).__name__)
def test_every_run_is_made_whatever_became_of_the_others(launcher, tmp_path):
    pytest.importorskip({"Local": "rkd"}.get(type(launcher).__name__, type(launcher).__name__.lower()))
    outcomes = {o.number: o for o in launcher.launch(commands(tmp_path, *PROGRAMS), tmp_path)}
    assert {n: (o.exit_code, o.said) for n, o in outcomes.items()} == {
        n: (code, f"folder-{n}") for n, code in enumerate([0, 3, 0])
    }
    assert [(tmp_path / f"{n}.log").read_text() for n in range(3)] == [f"line-{n}\n" for n in range(3)]


def test_runs_side_by_side_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    ask = "import os; print(os.environ['OMP_NUM_THREADS'])"
    assert [o.said for o in Joblib(2).launch(commands(tmp_path, ask), tmp_path)] == ["3"]


@pytest.mark.parametrize("launcher", [Local(), Joblib(1)])
def test_an_interruption_reaches_the_run_in_progress_and_no_other_is_begun(launcher, tmp_path):
    saves = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)"
    )
    began, before = tmp_path / "began", signal.getsignal(signal.SIGINT)

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with passing_on_signals():
        made = commands(tmp_path, saves, f"import pathlib; pathlib.Path({str(began)!r}).touch()")
        outcomes = list(launcher.launch(made, tmp_path))
    assert [o.exit_code for o in outcomes] == [Interrupted.exit_code, None] and not began.exists()
    assert signal.getsignal(signal.SIGINT) is before
    with passing_on_signals():  # a later sweep begins afresh
        assert run_command(commands(tmp_path, "print('x')")[0]).said == "x"


@pytest.mark.slow
def test_an_interruption_cancels_the_jobs_of_a_cluster(tmp_path):
    pytest.importorskip("submitit")
    saves = (
        "import pathlib, signal, sys, time\n"
        f"saved = pathlib.Path({str(tmp_path / 'saved')!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (saved.touch(), sys.exit(75)))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)"
    )

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with passing_on_signals():
        [outcome] = Submitit("local").launch(commands(tmp_path, saves), tmp_path)
    assert outcome.exit_code == Interrupted.exit_code and outcome.seconds < 30
    end = time.monotonic() + 10
    while not (tmp_path / "saved").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("launcher", [Joblib(), Submitit(), Ray()])
def test_a_launcher_without_its_package_says_what_to_install(launcher, tmp_path, monkeypatch):
    package = type(launcher).__name__.lower()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ResourceError, match=rf"pip install 'rkd\[{package}\]', or launcher=local"):
        list(launcher.launch(commands(tmp_path, "pass"), tmp_path))
