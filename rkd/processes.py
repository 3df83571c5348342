"""Worker processes that work beside this one and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def usable_cores() -> int:
    """Return how many cores this process may use; a container may have fewer than its machine."""
    if hasattr(os, "sched_getaffinity"):  # which macOS lacks
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of so many processes, which leave interrupts to this one and end when it is gone, even killed.

    They are spawned, not forked: this process may hold threads and a CUDA context. Each is to use one core.
    """
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _belong_to_parent)


def _belong_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch, if it comes to that, would take all cores
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
