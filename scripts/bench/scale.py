"""Time and memory against the size of a corpus, and against the number of processes that train.

    python scripts/bench/scale.py --sizes 1000 10000 100000 --ranks 1 2 4 --out /tmp/scale

Writes corpora of half-second tones as manifests, runs `rkd` on them, and prints two tables in Markdown. Seconds are
those of whole commands; a further step is a part of the difference between trainings of 1 and of 201 steps. Memory is
the largest that a command's processes had together for themselves: pages of the store, which is memory-mapped, are the
system's cache and not counted. Linux only.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FURTHER = 200  # steps
TRAIN = ["student=ctc_tiny", "loss=supervised", "noise=white", "trainer.clean=0", "trainer.validate_every=1000"]
EVALUATE = ["evaluate.snr=[0]", "evaluate.quality_utterances=0", "evaluate.max_utterances=null"]
Figures = tuple[float, float]  # seconds and MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000], help="utterances")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="processes, on the first of the sizes")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print("| utterances | prepare | again | to the first step | a further step | evaluate |\n|---|---|---|---|---|---|")
    for size in args.sizes:
        data = write_corpus(args.out / str(size), size)
        prepare, again = measure("prepare", data), measure("prepare", data)
        first, step_ms = trained(data)
        scored = measure("evaluate", [*data, *TRAIN, "trainer.steps=1", *EVALUATE])
        print(f"| {size} | {told(prepare)} | {told(again)} | {told(first)} | {step_ms:.0f} ms | {told(scored)} |")
    print("\n| processes | to the first step | a further step |\n|---|---|---|")
    data = write_corpus(args.out / "ranks", args.sizes[0])
    measure("prepare", data)
    for ranks in args.ranks:
        first, step_ms = trained([*data, f"seed={ranks}"], ranks)
        print(f"| {ranks} | {told(first)} | {step_ms:.0f} ms |")


def write_corpus(folder: Path, size: int) -> list[str]:
    """Write half-second tones, a thousand to a folder, and a manifest with two digits for each; return the overrides
    that name it."""
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    t_T = np.arange(8000) / 16000
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    with (corpus / "list.jsonl").open("w") as manifest:
        for i in range(size):
            path = corpus / str(i // 1000) / f"{i}.wav"
            path.parent.mkdir(exist_ok=True)
            words = rng.integers(0, 10, 2)
            soundfile.write(path, 0.1 * np.sin(2 * np.pi * (200 + 50 * words[0]) * t_T), 16000)
            text = " ".join(WORDS[w] for w in words)
            row = {"audio": str(path.relative_to(corpus)), "text": text, "speaker": f"s{i % 100}"}
            manifest.write(json.dumps(row) + "\n")
    return ["data=manifest", f"data.path={corpus / 'list.jsonl'}", f"root={folder / 'runs'}"]


def trained(data: list[str], ranks: int = 1) -> tuple[Figures, float]:
    """Return the figures of a training of one step, and the milliseconds of a further one."""
    first, longer = (measure("distill", [*data, *TRAIN, f"trainer.steps={n}"], ranks) for n in (1, 1 + FURTHER))
    return first, 1000 * (longer[0] - first[0]) / FURTHER


def measure(command: str, overrides: list[str], ranks: int = 1) -> Figures:
    """Run `rkd`; return its wall seconds, and the largest memory of its processes together in MB."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    words = [sys.executable, *torchrun, "-m", "rkd", command, *overrides]
    largest = 0.0
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            largest = max(largest, sum(own_mb(pid) for pid in with_children(process.pid)))
            time.sleep(0.1)
        seconds = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"rkd {command} {' '.join(overrides)} failed:\n{said.read().decode()}")
    return seconds, largest


def with_children(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    try:
        children = [c for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return []
    return [pid, *(below for child in children for below in with_children(int(child)))]


def own_mb(pid: int) -> float:
    """Return the resident memory of a process that is no file's, in MB."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1000 if found else 0.0


def told(figures: Figures) -> str:
    return f"{figures[0]:.1f} s, {figures[1]:.0f} MB"


if __name__ == "__main__":
    main()
