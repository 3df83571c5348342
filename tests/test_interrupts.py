import os
import signal
import subprocess
import sys

import pytest

from rkd.interrupts import asked_to_stop, stopped_by_signals

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@BOTH
def test_a_signal_ends_the_body_with_keyboard_interrupt(number):
    before = handlers()
    with pytest.raises(KeyboardInterrupt), stopped_by_signals():
        os.kill(os.getpid(), number)
    assert handlers() == before


@BOTH
def test_an_error_made_of_the_interrupt_is_one_too(number):
    with pytest.raises(KeyboardInterrupt) as raised, stopped_by_signals():
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as error:
            raise RuntimeError("Error calling __set_name__") from error
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError), stopped_by_signals():
        raise RuntimeError


def test_the_body_asks_when_it_is_ready_and_a_second_ctrl_c_stops_at_once():
    before = handlers()
    with pytest.raises(KeyboardInterrupt), asked_to_stop() as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped()
        os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_an_interrupt_in_code_from_a_string_leaves_the_exit_code_alone(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import rkd.cli\n"
        "def main():\n"
        "    try:\n        exec('raise KeyboardInterrupt')\n"
        "    except KeyboardInterrupt:\n        return 75\n"
        "rkd.cli.main = main\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "rkd"], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 75, done.stderr
