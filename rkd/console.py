"""What people read: one rich live view on a terminal, plain lines elsewhere, all on stderr; stdout is for scripts."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any, TypeVar

from rkd.errors import ResourceError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

T = TypeVar("T")

LINE_EVERY_SECONDS = 10.0


@functools.cache
def console() -> Console:
    """Return the console that writes to stderr; of several ranks only the first is heard."""
    from rich.console import Console

    # Redirected output is not a terminal of 80 columns: a path must stay in one piece.
    width = None if sys.stderr.isatty() else 200
    return Console(stderr=True, width=width, highlight=False, quiet=os.environ.get("RANK", "0") != "0")


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Let whatever libraries and their subprocesses print reach stderr, so that stdout holds the run folder alone."""
    try:
        saved = os.dup(1)
    except OSError:  # started without a stdout
        yield
        return
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def put(text: object) -> None:
    """Print lines for scripts, on stdout.

    Raises:
        ResourceError: it cannot be written.
        BrokenPipeError: nobody reads it.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ResourceError(f"stdout cannot be written: {error.strerror}") from error


def say(text: str) -> None:
    """Print a line for people."""
    console().print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning."""
    console().print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)


class Progress:
    """A training that people watch: one live view on a terminal, elsewhere a line now and then.

    Args:
        stage: what the view is called.
        total_steps: number of steps of the whole training.
    """

    def __init__(self, stage: str, total_steps: int) -> None:
        self.stage, self.total_steps = stage, total_steps
        self.step = 0
        self.losses: dict[str, float] = {}
        self.audio_seconds = 0.0
        self.wer: float | None = None
        self.best_wer = math.inf
        self._live: Any = None
        self._told = 0  # the step of the last line
        self._first_step: int | None = None  # the step before the first update: a resumed run does not start at 0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if console().is_terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self._view, console=console(), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif self.step != self._told:
            self._say_line()

    def update(self, step: int, losses: Mapping[str, float], audio_seconds: float) -> None:
        """Tell that a step is done: its number, counted from 1, its loss terms by name, its seconds of audio."""
        if self._first_step is None:
            self._first_step = step - 1
        self.step, self.losses = step, dict(losses)
        self.audio_seconds += audio_seconds
        if self._live is None and time.monotonic() - self._last_line >= LINE_EVERY_SECONDS:
            self._say_line()

    def validated(self, step: int, wer: float, best_wer: float) -> None:
        """Tell the word error rate of a validation, a fraction, and the best so far."""
        self.step, self.wer, self.best_wer = step, wer, best_wer
        if self._live is None:
            self._say_line()

    def _say_line(self) -> None:
        self._last_line, self._told = time.monotonic(), self.step
        say(self._line())

    def _line(self) -> str:
        return f"{self.stage} " + "  ".join(f"{name} {value}".strip() for name, value in self._facts())

    def _facts(self) -> Iterator[tuple[str, str]]:
        """Yield (name, value) of everything worth showing, the parts of a line or of the live view."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (self.step - (self._first_step or 0)) / seconds
        yield "step", f"{self.step}/{self.total_steps}"
        yield "rate", f"{rate:.2f} steps/s"
        yield "audio", f"{self.audio_seconds / seconds:.0f} s/s"
        left = duration((self.total_steps - self.step) / rate) if rate > 0 else "?"
        yield "left", left
        for name, value in self.losses.items():
            yield name, f"{value:.4g}"
        if self.wer is not None:
            yield "validation WER", f"{100 * self.wer:.1f}% (best {100 * self.best_wer:.1f}%)"

    def _view(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for name, value in self._facts():
            table.add_row(f"[dim]{name}[/dim]", value)
        bar = ProgressBar(self.total_steps, self.step, width=40)
        return Group(f"[bold]{self.stage}[/bold]", bar, table)


def track(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    size: Callable[[T], int] = lambda item: 1,
    done: int = 0,
) -> Iterator[T]:
    """Yield the items; show how many are done: a bar on a terminal, elsewhere a line every ten seconds.

    ``size`` says how many an item stands for, ``done`` how many were done before.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    last = time.monotonic()
    if console().is_terminal:
        from rich import progress

        with progress.Progress(console=console(), transient=True) as bar:
            task = bar.add_task(description, total=total, completed=done)
            for item in items:
                yield item
                done += size(item)
                bar.update(task, completed=done, description=f"{description} {done}")
        return
    for item in items:
        yield item
        done += size(item)
        if time.monotonic() - last >= LINE_EVERY_SECONDS:
            last = time.monotonic()
            say(f"{description} {done}" + (f"/{total}" if total else ""))


def duration(seconds: float) -> str:
    """Return a time as people say it, e.g. ``45 s``, ``12 min``, ``3 h 05 min``, ``12 d``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes >= 100 * 60:
        return f"{minutes // (24 * 60)} d"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
