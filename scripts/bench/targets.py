"""Stored targets: what a token takes, how fast it is written and read, and what it does to the student's gradient.

    python scripts/bench/targets.py                           the table of docs/targets.md, on the CPU
    python scripts/bench/targets.py --k 64 --draws 50 --device cuda
    python scripts/bench/targets.py --layer runs/targets/digits-hidden.encoder.1-1a2b3c4d

One Markdown table on stdout. The distributions are made: what counts is how much of the teacher's mass the largest
logits hold at the temperature in use. The student is near the teacher: 0.7 times its logits, with noise of 1. Errors
are those of the gradient of KL(teacher || student) with respect to the student's logits, relative to its norm.

With --layer, what codebooks lose of a hidden layer that `rkd distill loss=kd_hidden` has stored in float16: the mean
squared error relative to the variance, on utterances that the codebooks were not learned from.

Shapes: R rows, D width of a layer, V vocabulary.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rkd.draws import unit_hash
from rkd.errors import RkdError
from rkd.losses import SoftTokens
from rkd.runs import write_json
from rkd.targets import CARD, Card, Targets, Writer, codebooks, pack, read_card, written

TEMPERATURES = (1.0, 2.0, 4.0)
RUNS = 5
ROWS_A_CLIP = 16
LAYER_ROWS = 20_000  # of a hidden layer, to be judged by


def peaks(logits_RV: Tensor, n: int, height: float, spread: float) -> Tensor:
    """Return logits of which n of each row are higher, by so much on average."""
    at_Rn = torch.randint(logits_RV.shape[1], (len(logits_RV), n))
    return logits_RV.scatter_add(1, at_Rn, height + spread * torch.randn(len(logits_RV), n))


def distributions(n_rows: int, n_outputs: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each distribution and logits ``(R, V)``."""
    size = (n_rows, n_outputs)
    yield "30 tokens about 60 above the others", peaks(2 * torch.randn(size), min(30, n_outputs), 60, 5)
    yield "one token 25 above the others", peaks(1.5 * torch.randn(size), 1, 25, 0)
    yield "30 tokens about 14 above the others", peaks(2 * torch.randn(size), min(30, n_outputs), 14, 5)
    log_rank_V = torch.arange(1, n_outputs + 1).log()
    order_RV = torch.stack([torch.randperm(n_outputs) for _ in range(n_rows)])
    yield "Zipf, exponent 2.5", -2.5 * log_rank_V[order_RV]
    yield "8 tokens about 8 above the others", peaks(2 * torch.randn(size), min(8, n_outputs), 8, 4)


def cards(n_outputs: int, k: int, draws: int) -> list[Card]:
    """Return the ways to store: the largest at all temperatures, and draws at each."""
    drawn = [Card("logits", None, n_outputs, k, [t], draws) for t in TEMPERATURES]
    return [Card("logits", None, n_outputs, k, list(TEMPERATURES)), *drawn]


def store(logits_RV: Tensor, card: Card, folder: Path) -> float:
    """Write rows as the targets of clips; return the seconds it took."""
    n = len(logits_RV)
    chance_R = torch.rand(n)
    write_json(folder / CARD, vars(card))
    synchronise(logits_RV.device)
    started = time.perf_counter()
    with Writer(folder) as writer:
        for start in range(0, n, ROWS_A_CLIP):
            part = slice(start, start + ROWS_A_CLIP)
            writer.add(str(start), pack(logits_RV[part], card, chance_R[part]))
    return time.perf_counter() - started


def read(folder: Path, n_rows: int, device: torch.device) -> tuple[float, object]:
    """Return the seconds that all rows take to be read onto a device, and the rows."""
    ids = [str(start) for start in range(0, n_rows, ROWS_A_CLIP)]
    targets = Targets(folder, ids)
    started = time.perf_counter()
    stream = targets.of(range(len(ids)), ROWS_A_CLIP).each(lambda tensor: tensor.to(device))
    synchronise(device)
    return time.perf_counter() - started, stream.rows(stream.mask())


def synchronise(device: torch.device) -> None:
    """Wait for what a device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(logits_RV: Tensor, card: Card) -> tuple[list[float], list[float]]:
    """Return tokens a second, written and read, of several runs."""
    written, been_read = [], []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as name:
            written.append(len(logits_RV) / store(logits_RV, card, Path(name)))
            been_read.append(len(logits_RV) / read(Path(name), len(logits_RV), logits_RV.device)[0])
    return written, been_read


def gradient(student_RV: Tensor, teacher: object, temperature: float) -> Tensor:
    """Return the gradient of the soft loss with respect to the student's logits."""
    student_RV = student_RV.detach().requires_grad_()
    SoftTokens(temperature=temperature).of_rows(student_RV, teacher, None).sum().backward()
    assert student_RV.grad is not None
    return student_RV.grad


def errors(logits_RV: Tensor, cards: list[Card]) -> dict[str, list[float]]:
    """Return the relative error of the gradient at each temperature, with the largest and with draws."""
    student_RV = 0.7 * logits_RV + torch.randn_like(logits_RV)
    largest, *drawn = cards
    found: dict[str, list[float]] = {"largest": [], "drawn": []}
    for temperature, own in zip(TEMPERATURES, drawn, strict=True):
        exact_RV = gradient(student_RV, logits_RV, temperature)
        for name, card in (("largest", largest), ("drawn", own)):
            with tempfile.TemporaryDirectory() as folder:
                store(logits_RV, card, Path(folder))
                _, rows = read(Path(folder), len(logits_RV), logits_RV.device)
            stored_RV = gradient(student_RV, rows, temperature)
            found[name].append(float((stored_RV - exact_RV).norm() / exact_RV.norm()))
    return found


def told(values: list[float], form: Callable[[float], str]) -> str:
    """Return numbers in one cell."""
    return ", ".join(map(form, values))


def spread(values: list[float]) -> str:
    """Return the median and the range of some rates."""
    low, middle, high = (f"{np.quantile(values, q):,.0f}" for q in (0, 0.5, 1))
    return f"{middle} ({low} to {high})"


def table(n_rows: int, n_outputs: int, k: int, draws: int, device: torch.device) -> str:
    """Return the table: a line for each distribution, then one for each way to store."""
    torch.manual_seed(0)
    ways = cards(n_outputs, k, draws)
    names = {"largest": f"{k} largest", "drawn": f"{draws} draws"}
    lines = [
        f"| distribution over {n_outputs:,} tokens | mass of the {k} largest at T = 1, 2, 4 | "
        f"error, {names['largest']}, at T = 1, 2, 4 in % | error, {names['drawn']}, in % |",
        "|---|---|---|---|",
    ]
    for name, logits_RV in distributions(n_rows, n_outputs):
        logits_RV = logits_RV.to(device)
        mass = [float((logits_RV / t).softmax(-1).topk(k).values.sum(-1).mean()) for t in TEMPERATURES]
        found = errors(logits_RV, ways)
        cells = [told([100 * e for e in found[way]], "{:.3g}".format) for way in ("largest", "drawn")]
        lines.append(f"| {name} | {told(mass, '{:.3f}'.format)} | {' | '.join(cells)} |")
    for way, card in (("largest", ways[0]), ("drawn", ways[1])):
        size = card.row_type.itemsize
        written, been_read = rates(logits_RV, card)
        mb = [f"{size * np.median(rate) / 1e6:.3g} MB/s" for rate in (written, been_read)]
        lines.append(
            f"| *{names[way]}* | {size} bytes a token | written: {spread(written)} tokens/s, {mb[0]} | "
            f"read: {spread(been_read)} tokens/s, {mb[1]} |"
        )
    return "\n".join(lines)


def layer_table(folder: Path) -> str:
    """Return the table of a stored hidden layer: a line for each number of codebooks that divides it."""
    ids = sorted(written(folder), key=unit_hash)
    try:
        card = read_card(folder)
    except RkdError as error:
        raise SystemExit(str(error)) from error
    if card.stream.partition(".")[0] != "hidden" or card.codebooks is not None:
        raise SystemExit(f"{folder} holds no hidden layer in float16")
    targets = Targets(folder, ids)
    found, n_rows = [], 0
    for i, n in enumerate(targets.n_rows.tolist()):
        if n_rows >= codebooks.LEARNED_FROM + LAYER_ROWS:
            break
        found.append(targets.of([i]).values_BND[0].float())
        n_rows += n
    values_RD = torch.cat(found)
    learned_RD, other_RD = values_RD[: codebooks.LEARNED_FROM], values_RD[codebooks.LEARNED_FROM :]
    if not len(other_RD):
        raise SystemExit(
            f"{folder} has {n_rows} rows, of which {codebooks.LEARNED_FROM} are for the codebooks: too few"
        )
    lines = ["| bytes a frame | error, in % of the variance | learned in |", "|---|---|---|"]
    for n in [n for n in (2**i for i in range(10)) if n <= card.n_outputs and card.n_outputs % n == 0]:
        started = time.perf_counter()
        book_CKd = codebooks.learn(learned_RD, n, "layer")
        seconds = time.perf_counter() - started
        decoded_RD = codebooks.decode(codebooks.encode(other_RD, book_CKd), book_CKd)
        error = float(((decoded_RD - other_RD) ** 2).mean() / other_RD.var(0, correction=0).mean())
        lines.append(f"| {n} | {100 * error:.2g} | {seconds:.1f} s |")
    return "\n".join([*lines, f"| {2 * card.n_outputs} (float16) | | |"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=51865, help="tokens (default: Whisper's 51,865)")
    parser.add_argument("--k", type=int, default=128, help="logits kept of each token, even (default: 128)")
    parser.add_argument("--draws", type=int, default=128, help="tokens drawn instead (default: 128)")
    parser.add_argument("--rows", type=int, default=64, help="tokens of each distribution (default: 64)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--layer", type=Path, help="folder of a hidden layer's targets in float16")
    options = parser.parse_args()
    if options.layer:
        print(layer_table(options.layer))
        return
    if options.k % 2 or not 0 < options.k < options.vocabulary:
        parser.error("--k must be even and below --vocabulary")
    device = torch.device(options.device)
    print(table(options.rows, options.vocabulary, options.k, options.draws, device))


if __name__ == "__main__":
    main()
