"""The table of word error rates, and what each system costs, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rkd.report.table import (
    NoiseRow,
    Results,
    mean_of,
    of_speech,
    percent,
    short_count,
    snr_text,
    wer_table,
    words_on_noise,
    words_per_minute,
    words_text,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

_RICH_STYLE = {"teacher": "blue", "student": "bold", "baseline": "dim"}


def print_table(results: Results, console: Console) -> None:
    """Print word error rates by condition and SNR, what each system costs, what its denoiser does, and the words that
    it writes where nobody speaks.
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    silent, results = words_on_noise(results), of_speech(results)
    table = wer_table(results)
    wer = RichTable(title="WER in % by SNR in dB", title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    wer.add_column("condition", overflow="fold", min_width=9)
    wer.add_column("system", overflow="fold", min_width=12)
    for snr_db in table.snrs_db:
        wer.add_column(snr_text(snr_db).replace(" ", "\n"), justify="right", min_width=5)
    wer.add_column("mean", justify="right", min_width=5)
    wer.add_column("words", justify="right", min_width=6)
    for group in table.groups:
        title = group.title if group.is_mean else with_seen(group.title, group.seen)
        for i, row in enumerate(group.rows):
            wer.add_row(
                escape(title) if i == 0 else "",
                escape(row.system["name"]),
                *(percent(cell.wer) if cell else "" for cell in row.cells),
                percent(row.mean.wer) if row.mean else "",
                words_text(row, group.is_mean),
                style=_RICH_STYLE[row.system["role"]],
                end_section=i == len(group.rows) - 1,
            )
    console.print(wer)
    console.print("Words: reference words behind each figure; on the lines of a mean, behind the mean.", style="dim")

    costs = _table("Systems", ["system", "role", "family"], ["parameters", "MB", "real-time factor"])
    for system in results["systems"]:
        costs.add_row(
            escape(system["name"]),
            system["role"],
            system["family"],
            short_count(system["params"]),
            f"{system['bytes'] / 1e6:.1f}",
            "–" if system["rtf"] is None else f"{system['rtf']:.3g}",
            style=_RICH_STYLE[system["role"]],
        )
    console.print(costs)
    _print_denoised(results, console)
    _print_words_on_noise(silent, results, console)


def with_seen(title: str, seen: bool | None) -> str:
    """Return the name of a noise and whether it was trained on."""
    return title if seen is None else f"{title} ({'seen' if seen else 'unseen'})"


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> RichTable:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _print_denoised(results: Results, console: Console) -> None:
    from rich.markup import escape

    table = _table("Means in noise, before and after the denoiser", ["system", "measure"], ["input", "denoised"])
    for system in results["systems"]:
        for metric, name in (("pesq", "PESQ"), ("stoi", "STOI"), ("si_sdr", "SI-SDR in dB")):
            before, after = mean_of(system, metric), mean_of(system, f"denoised_{metric}")
            if after is not None:
                figures = ("–" if before is None else f"{before:.2f}", f"{after:.2f}")
                table.add_row(escape(system["name"]), name, *figures, style=_RICH_STYLE[system["role"]])
    if table.row_count:
        console.print(table)


def _print_words_on_noise(rows: Sequence[NoiseRow], results: Results, console: Console) -> None:
    from rich.markup import escape

    names = [escape(system["name"]) for system in results["systems"]]
    table = _table("Words a minute where nobody speaks", ["noise"], names)
    for row in rows:
        table.add_row(escape(with_seen(row.title, row.seen)), *map(words_per_minute, row.cells))
    if rows:
        console.print(table)
