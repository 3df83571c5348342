"""Worker processes end with the one that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

import rkd
from rkd.processes import usable_cores

STARTS_TWO = """
import os, time
from rkd.processes import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as pool:
        pids = [pool.submit(os.getpid) for _ in range(2)]
        waiting = [pool.submit(time.sleep, 600) for _ in range(2)]
        print(*(pid.result() for pid in pids), flush=True)
        time.sleep(600)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "starts_two.py"
    script.write_text(STARTS_TWO)
    environment = {**os.environ, "PYTHONPATH": str(Path(rkd.__file__).parents[1])}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        parent.stdout.readline()
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert len(children) >= 2
    end = time.monotonic() + 30
    while (left := [child for child in children if is_alive(child)]) and time.monotonic() < end:
        time.sleep(0.05)
    for child in left:
        child.kill()
    assert not left


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    assert usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    assert usable_cores() == os.cpu_count()
