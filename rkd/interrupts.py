"""How a run is asked to stop: by SIGINT (Ctrl-C) or SIGTERM (a scheduler), which mean the same."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the body with KeyboardInterrupt.

    Also where the code that they hit makes another error of it, as the standard library's dataclasses do in an import.
    """
    with _handled_by(_interrupt) as received:
        try:
            yield
        except Exception as error:
            if received:
                raise KeyboardInterrupt from error
            raise


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a question the body can ask when it is ready; a second SIGINT stops at once."""

    def only_the_second(received: list[int]) -> None:
        if len(received) > 1 and received[-1] == signal.SIGINT:
            _interrupt(received)

    with _handled_by(only_the_second) as received:
        yield lambda: bool(received)


def _interrupt(received: list[int]) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handled_by(handle: Callable[[list[int]], None]) -> Iterator[list[int]]:
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        handle(received)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
