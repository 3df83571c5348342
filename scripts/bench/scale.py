"""Time and memory against the size of a corpus: prepare, prepare again, and a short training.

    python scripts/bench/scale.py --sizes 1000 10000 100000 --out /tmp/scale

Writes a corpus of half-second tones as a manifest, runs `rkd` on it, and prints a table in Markdown: wall seconds and
the largest resident memory of each command's main process. Memory-mapped pages of the store count as resident.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print(
        "| utterances | prepare, s | MB | again, s | MB | 10 steps, s | MB |\n|---|---|---|---|---|---|---|", flush=True
    )
    for size in args.sizes:
        folder = args.out / str(size)
        shutil.rmtree(folder, ignore_errors=True)
        write_corpus(folder / "corpus", size)
        data = ["data=manifest", f"data.path={folder / 'corpus' / 'list.jsonl'}", f"root={folder / 'runs'}"]
        train = ["student=ctc_tiny", "loss=supervised", "noise=white", "trainer.steps=10", "trainer.validate_every=10"]
        cells = [measure(["prepare", *data]), measure(["prepare", *data]), measure(["distill", *data, *train])]
        print(f"| {size} | " + " | ".join(f"{s:.1f} | {mb:.0f}" for s, mb in cells) + " |", flush=True)
        shutil.rmtree(folder)


def write_corpus(folder: Path, size: int) -> None:
    """Write half-second tones, a thousand to a folder, and a manifest with a digit string for each."""
    rng = np.random.default_rng(0)
    t_T = np.arange(8000) / 16000
    folder.mkdir(parents=True)
    with (folder / "list.jsonl").open("w") as manifest:
        for i in range(size):
            path = folder / str(i // 1000) / f"{i}.wav"
            path.parent.mkdir(exist_ok=True)
            words = rng.integers(0, 10, 2)
            soundfile.write(path, 0.1 * np.sin(2 * np.pi * (200 + 50 * words[0]) * t_T), 16000)
            text = " ".join(WORDS[w] for w in words)
            row = {"audio": str(path.relative_to(folder)), "text": text, "speaker": f"s{i % 100}"}
            manifest.write(json.dumps(row) + "\n")


def measure(arguments: list[str]) -> tuple[float, float]:
    """Run `rkd`; return wall seconds and the largest resident memory of its main process in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "rkd", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"rkd {' '.join(arguments)} failed:\n{said}")
    return time.perf_counter() - started, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
