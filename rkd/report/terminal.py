"""The table of word error rates, and what each system costs, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rkd.report.table import Results, percent, short_count, snr_text, wer_table, words_text

if TYPE_CHECKING:
    from rich.console import Console

_RICH_STYLE = {"teacher": "blue", "student": "bold", "baseline": "dim"}


def print_table(results: Results, console: Console) -> None:
    """Print word error rates by condition and SNR, and what each system costs."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    table = wer_table(results)
    wer = RichTable(title="WER in % by SNR in dB", title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    wer.add_column("condition", overflow="fold", min_width=9)
    wer.add_column("system", overflow="fold", min_width=12)
    for snr_db in table.snrs_db:
        wer.add_column(snr_text(snr_db).replace(" ", "\n"), justify="right", min_width=5)
    wer.add_column("mean", justify="right", min_width=5)
    wer.add_column("words", justify="right", min_width=6)
    for group in table.groups:
        title = group.title
        if group.seen is not None and not group.is_mean:
            title += " (seen)" if group.seen else " (unseen)"
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

    costs = RichTable(title="Systems", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("system", "role", "family"):
        costs.add_column(name)
    for name in ("parameters", "MB", "real-time factor"):
        costs.add_column(name, justify="right")
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
