"""What a run folder says of itself: state, times and key figures, with the standard library alone.

Whatever lies in a folder may be damaged, half written or somebody else's: it is shown as far as it can be read.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rkd.status import damaged_files, is_running, one_of

STATES = ("running", "done", "failed", "interrupted", "damaged")
_BEST = re.compile(rb'"validation_wer": ([\d.e+-]+), "best": true\}')
_LAST_STEP = re.compile(rb'^\{"step": (\d+),', re.MULTILINE)
_TAIL_BYTES = 4096  # of metrics.jsonl: its last line is in there


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: where it lies.
        stage, name: the two last parts of that.
        state: one of STATES; ``damaged`` where ``status.json`` cannot be read, or a file of the result is not whole.
        started: in seconds since 1970.
        seconds: that it took, or has taken up to its last sign.
        error: why it failed or stopped.
        figures: what it came to, by name.
    """

    folder: str
    stage: str
    name: str
    state: str
    started: float | None
    seconds: float | None
    error: str | None
    figures: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """Return the figures, or why there are none, in one line."""
        error = " ".join((self.error or "").split())
        return error if self.state in ("failed", "damaged") else _summary(self.figures) or error


def find_runs(root: Path, depth: int = 2) -> Iterator[Path]:
    """Yield the run folders, those with a ``status.json``, at and down to so many levels below a folder.

    A folder below the first that cannot be read holds no runs as far as one can tell.
    """
    if (root / "status.json").exists():
        yield root
    elif depth > 0:
        with os.scandir(root) as entries:
            below = sorted(entry.path for entry in entries if entry.is_dir())
        for folder in below:
            try:
                yield from find_runs(Path(folder), depth - 1)
            except PermissionError:
                continue


def read_run(folder: Path) -> Run:
    """Read a run folder."""
    status = _read_json(folder / "status.json")
    state = status.get("state")
    if state not in STATES:
        state = "damaged"
    elif state == "running":
        state = _state_of_running(folder, status)
    stage, name = folder.absolute().parts[-2:]
    error = status.get("error") if state not in ("running", "done") else None
    if state == "damaged":
        error = "status.json cannot be read; the stage's command makes the run again"
    elif damaged := damaged_files(folder, status):
        remove = "" if stage == "prepare" else "remove the folder, and "
        state, error = "damaged", f"{one_of(damaged)}; {remove}the stage's command makes it again"
    return Run(
        str(folder),
        stage,
        name,
        state,
        _number(status.get("started")),
        _number(status.get("seconds")),
        None if error is None else str(error),
        _figures(folder, stage),
    )


def _state_of_running(folder: Path, status: dict[str, Any]) -> str:
    if _number(status.get("started")) is None:
        return "damaged"
    return "running" if is_running(folder, status) else "interrupted"


def _figures(folder: Path, stage: str) -> dict[str, Any]:
    reader: Callable[[Path], dict[str, Any]] | None = {
        "prepare": _prepared,
        "train-teacher": lambda f: _trained(f, ("teacher", "trainer")),
        "distill": lambda f: _trained(f, ("trainer",)),
        "evaluate": _evaluated,
    }.get(stage)
    try:
        return reader(folder) if reader else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # half written, or of another version
        return {}


def _prepared(folder: Path) -> dict[str, Any]:
    splits = _read_json(folder / "summary.json")["splits"].values()
    if all("responses" in split for split in splits):
        return {what: sum(split[what] for split in splits) for what in ("rooms", "responses")}
    what = "utterances" if all("utterances" in split for split in splits) else "clips"
    return {what: sum(split[what] for split in splits), "hours": round(sum(split["hours"] for split in splits), 3)}


def _trained(folder: Path, trainer: tuple[str, ...]) -> dict[str, Any]:
    text = (folder / "metrics.jsonl").read_bytes()
    best = _BEST.findall(text)  # each phase has one of its own, and the last one's is the result
    step = int(_LAST_STEP.findall(text[-_TAIL_BYTES:])[-1])
    figures: dict[str, Any] = {"step": step, "steps": _steps(folder, trainer)}
    return figures | ({"best_validation_wer": float(best[-1])} if best else {})


def _steps(folder: Path, trainer: tuple[str, ...]) -> int | None:
    """Find the number of steps in the text of ``config.yaml``, as OmegaConf writes it: two spaces a level."""
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    for depth, key in enumerate(trainer):
        found = re.search(rf"^{'  ' * depth}{key}:\n((?:{'  ' * (depth + 1)}.*\n)+)", text, re.MULTILINE)
        if not found:
            return None
        text = found[1]
    steps = re.search(rf"^{'  ' * len(trainer)}steps: (\d+)$", text, re.MULTILINE)
    return int(steps[1]) if steps else None


def _evaluated(folder: Path) -> dict[str, Any]:
    figures = {}
    for role in ("teacher", "student"):
        for system in _read_json(folder / "results.json")["systems"]:
            if system["role"] == role:
                for kind in ("clean", "noisy"):
                    # As in the report: the unweighted mean over the conditions that were measured.
                    wers = [
                        condition["wer"]
                        for condition in system["conditions"]
                        if (condition["condition"] == "clean") == (kind == "clean") and condition["wer"] is not None
                    ]
                    if wers:
                        figures[f"{role}_{kind}_wer"] = sum(wers) / len(wers)
                break
    return figures


def _summary(figures: dict[str, Any]) -> str:
    """Return figures as people read them."""

    def percent(name: str) -> str:
        return f"{100 * figures[name]:.1f}%" if name in figures else "-"

    if "hours" in figures:
        what = "utterances" if "utterances" in figures else "clips"
        return f"{figures['hours']:.2f} h, {figures[what]} {what}"
    if "rooms" in figures:
        return f"{figures['responses']} responses of {figures['rooms']} rooms"
    if "step" in figures:
        best = f", WER {percent('best_validation_wer')}" if "best_validation_wer" in figures else ""
        return f"step {figures['step']}/{figures['steps'] or '?'}{best}"
    systems = {
        role: f"{percent(f'{role}_clean_wer')} clean, {percent(f'{role}_noisy_wer')} noisy"
        for role in ("student", "teacher")
        if f"{role}_clean_wer" in figures or f"{role}_noisy_wer" in figures
    }
    return "; ".join(f"{role} {wers}" for role, wers in systems.items())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None
