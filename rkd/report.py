"""The evaluation's results for people: a page (``report.html``), the figures in it, and a table for the terminal.

Everything here reads the dictionary that ``results.json`` holds, so a report can be drawn again from a finished run.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rkd.metrics import align_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

Condition = dict[str, Any]
System = dict[str, Any]
Results = dict[str, Any]

_N_WORST = 25
_WER_AXIS_LIMIT = 1.2  # a system that hallucinates goes far beyond 100%; the others must stay readable

# Colours on white and on a dark page. The first student and its teacher stand out, baselines stay quiet.
_PALETTE = {
    "teacher": [("#1f5fa8", "#74b6f7"), ("#15807a", "#58d0c6")],
    "student": [("#d1480f", "#ff8f52"), ("#a8720a", "#f0bb45"), ("#b3246b", "#ff85bd")],
    "baseline": [("#66727f", "#9aa7b4"), ("#7d5aa6", "#c3a0ea"), ("#4d7c3a", "#97cf7f")],
}
_INK, _MUTED, _GRID, _PAPER = "#1b1f24", "#5c6670", "#dde2e7", "#fefefe"
_MARKER = {"teacher": "s", "student": "o", "baseline": "^"}
_LINE = {"teacher": "-", "student": "-", "baseline": (0, (4, 2))}
_RICH_STYLE = {"teacher": "blue", "student": "bold", "baseline": "dim"}

_QUALITY = {
    "pesq": ("PESQ", "wide-band, MOS-LQO 1 to 4.64"),
    "stoi": ("STOI", "intelligibility, at most 1"),
    "si_sdr": ("SI-SDR", "dB"),
}


# ---------------------------------------------------------------------------------------------------------------
# The table behind page and terminal


class Cell(NamedTuple):
    """A word error rate: of one condition, or the unweighted mean over several (then also of their intervals)."""

    wer: float | None
    lo: float | None
    hi: float | None
    n_words: int
    n_conditions: int


class Row(NamedTuple):
    system: System
    cells: list[Cell | None]
    mean: Cell | None


class Group(NamedTuple):
    """Conditions that differ in SNR alone (one row a system), or all the conditions that a mean is over."""

    title: str
    seen: bool | None
    is_mean: bool
    rows: list[Row]


class Table(NamedTuple):
    snrs_db: list[float | None]  # columns; None holds the conditions that have no SNR
    groups: list[Group]


def is_noisy(condition: Condition) -> bool:
    """Tell whether a condition is anything but clean speech."""
    return condition["condition"] != "clean"


def mean_noisy(system: System) -> Cell:
    """Return the unweighted mean of a system's WER over all its conditions but the clean one."""
    return _mean_cell(filter(is_noisy, system["conditions"]))


def _mean_cell(conditions: Iterable[Condition]) -> Cell:
    measured = [c for c in conditions if c["wer"] is not None]
    if not measured:
        return Cell(None, None, None, 0, 0)
    n = len(measured)
    lo = hi = None
    # Conditions share their utterances, so their errors go together: the ends are averaged, not the variances.
    if all(c.get("wer_ci") for c in measured):
        lo, hi = (sum(c["wer_ci"][end] for c in measured) / n for end in (0, 1))
    return Cell(sum(c["wer"] for c in measured) / n, lo, hi, sum(c["n_words"] for c in measured), n)


def _key(condition: Condition) -> tuple:
    return condition["condition"], condition["noise"], condition["seen"], condition["room"]


def _keys(conditions: list[Condition]) -> list[tuple]:
    """Return the groups of conditions in reading order: clean, rooms alone, seen noise, unseen noise."""
    keys = list(dict.fromkeys(map(_key, conditions)))
    noises = [noise for _, noise, _, _ in keys]
    return sorted(keys, key=lambda k: (k[1] is not None, k[2] is False, noises.index(k[1]), k[3] is not None))


def _title(condition: str, noise: str | None, seen: bool | None, room: str | None) -> str:
    place = f"room {room}" if room else "room" if "reverb" in condition else None
    return " + ".join(part for part in (noise, place) if part) or condition


def _snrs_db(conditions: list[Condition]) -> list[float]:
    return sorted({c["snr_db"] for c in conditions if c["snr_db"] is not None}, reverse=True)


def _all_conditions(results: Results) -> list[Condition]:
    return [c for system in results["systems"] for c in system["conditions"]]


def wer_table(results: Results) -> Table:
    """Arrange the word error rates: groups of conditions, a row for each system, a column for each SNR, best first."""
    conditions = _all_conditions(results)
    snrs_db: list[float | None] = [*_snrs_db(conditions)]
    if any(c["snr_db"] is None for c in conditions):
        snrs_db.insert(0, None)

    def group(title: str, seen: bool | None, is_mean: bool, select: Callable[[Condition], bool]) -> Group:
        rows = []
        for system in results["systems"]:
            chosen = [c for c in system["conditions"] if select(c)]
            columns = [[c for c in chosen if c["snr_db"] == snr_db] for snr_db in snrs_db]
            cells = [_mean_cell(column) if column else None for column in columns]
            rows.append(Row(system, cells, _mean_cell(chosen) if is_mean or len(chosen) > 1 else None))
        return Group(title, seen, is_mean, rows)

    groups = [group(_title(*key), key[2], False, lambda c, key=key: _key(c) == key) for key in _keys(conditions)]
    if {True, False} <= {c["seen"] for c in conditions}:
        groups.append(group("mean, seen noise", True, True, lambda c: c["seen"] is True))
        groups.append(group("mean, unseen noise", False, True, lambda c: c["seen"] is False))
    if any(map(is_noisy, conditions)):
        groups.append(group("mean, all noisy", None, True, is_noisy))
    return Table(snrs_db, groups)


def _words(row: Row, is_mean: bool) -> str:
    """Say how many reference words are behind each figure of a row, or behind its mean where the row is a mean."""
    if is_mean:
        return f"{row.mean.n_words:,}" if row.mean else "–"
    counts = sorted({cell.n_words for cell in row.cells if cell})
    return "–".join(f"{n:,}" for n in dict.fromkeys([*counts[:1], *counts[-1:]]))


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def _snr(snr_db: float | None) -> str:
    return "no noise" if snr_db is None else f"{snr_db:g}".replace("-", "−")


def _count(n: float | None) -> str:
    """Write a large number short: 23.4M."""
    if n is None:
        return "–"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:g}"


# ---------------------------------------------------------------------------------------------------------------
# The terminal


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
        wer.add_column(_snr(snr_db).replace(" ", "\n"), justify="right", min_width=5)
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
                *(_percent(cell.wer) if cell else "" for cell in row.cells),
                _percent(row.mean.wer) if row.mean else "",
                _words(row, group.is_mean),
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
            _count(system["params"]),
            f"{system['bytes'] / 1e6:.1f}",
            "–" if system["rtf"] is None else f"{system['rtf']:.3g}",
            style=_RICH_STYLE[system["role"]],
        )
    console.print(costs)


# ---------------------------------------------------------------------------------------------------------------
# Figures


def plot_wer(results: Results, path: Path) -> None:
    """Draw WER against SNR, mean over noise types: a line for each system, panels for unseen noise and for rooms.

    The bands average the 95% bootstrap intervals of the conditions.

    Args:
        path: the file to write; its suffix (.png, .svg, .pdf) is its format.
    """
    _save(_figure_means(results), path)


def plot_wer_by_noise(results: Results, path: Path) -> None:
    """Draw WER against SNR in a small panel for each noise type, with 95% bootstrap intervals.

    Args:
        path: the file to write; its suffix (.png, .svg, .pdf) is its format.
    """
    _save(_figure_by_noise(results), path)


def _save(figure: Figure, path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context(_RC):
        figure.savefig(path, dpi=160, bbox_inches="tight", facecolor="white")


_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rkd",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
}


class Panel(NamedTuple):
    title: str
    seen: bool | None
    select: Callable[[Condition], bool]  # the conditions along the SNR axis
    anchor_label: str
    anchor: Callable[[Condition], bool]  # the condition without noise, a point of its own on the left


def _colours(results: Results) -> list[tuple[str, str]]:
    """Return a colour for each system, on white and on a dark page."""
    used = dict.fromkeys(_PALETTE, 0)
    colours = []
    for system in results["systems"]:
        palette = _PALETTE[system["role"]]
        colours.append(palette[used[system["role"]] % len(palette)])
        used[system["role"]] += 1
    return colours


def _panel(
    results: Results, title: str, seen: bool | None, in_room: bool, select: Callable[[Condition], bool]
) -> Panel:
    if in_room and any(c["condition"] == "reverb" for c in _all_conditions(results)):
        return Panel(title, seen, select, "room\nonly", lambda c: c["condition"] == "reverb")
    return Panel(title, seen, select, "clean", lambda c: c["condition"] == "clean")


def _with_snr(results: Results) -> list[Condition]:
    return [c for c in _all_conditions(results) if c["snr_db"] is not None]


def _figure_means(results: Results) -> Figure:
    def place(c: Condition) -> tuple[bool, bool | None]:
        return "reverb" in c["condition"], c["seen"]

    titles = {True: "noise seen in training", False: "noise unseen in training", None: "noise"}
    panels = []
    for where in sorted(set(map(place, _with_snr(results))), key=lambda w: (w[0], w[1] is False)):
        in_room, seen = where
        title = titles[seen] + ", in rooms" * in_room
        panels.append(_panel(results, title, seen, in_room, lambda c, where=where: place(c) == where))
    if not panels:
        panels.append(_panel(results, "no noise", None, False, lambda c: False))
    return _figure(results, panels, columns=min(2, len(panels)), panel_inches=(5.2, 3.4), small=False)


def _figure_by_noise(results: Results) -> Figure:
    panels = [
        _panel(results, _title(*key), key[2], "reverb" in key[0], lambda c, key=key: _key(c) == key)
        for key in _keys(_with_snr(results))
    ]
    return _figure(results, panels, columns=min(4, max(1, len(panels))), panel_inches=(2.6, 1.95), small=True)


def _figure(
    results: Results, panels: list[Panel], columns: int, panel_inches: tuple[float, float], small: bool
) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    with matplotlib.rc_context(_RC):
        lines = math.ceil(len(panels) / columns)
        size = 8 if small else 10
        width, height = columns * panel_inches[0], lines * panel_inches[1] + 0.5
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.1, hspace=0.04))
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        top = _axis_top(results, panels)
        for i, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
            _draw_panel(axes, results, panel, top, small)
            if i % columns == 0:
                axes.set_ylabel("WER (%)", color=_MUTED, size=size)
            if i + columns >= len(panels):
                axes.set_xlabel("SNR (dB)", color=_MUTED, size=size)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        styles = zip(results["systems"], _colours(results), strict=True)
        handles = [Line2D([], [], label=_label(s), **_style(s, colour, small)) for s, (colour, _) in styles]
        legend = figure.legend(handles=handles, loc="outside upper left", ncols=2 if width < 6 else 4, fontsize=size)
        legend.set_frame_on(False)
        for text in legend.get_texts():
            text.set_color(_INK)
    return figure


def _label(system: System) -> str:
    """Name a system together with its role, once."""
    return system["name"] if system["role"] in system["name"] else f"{system['name']} ({system['role']})"


def _style(system: System, colour: str, small: bool) -> dict[str, Any]:
    role = system["role"]
    width = {"student": 2.4, "teacher": 1.8, "baseline": 1.5}[role]
    size = 6.5 if role == "student" else 5.5
    scale = 0.65 if small else 1.0
    return {
        "color": colour,
        "linestyle": _LINE[role],
        "linewidth": width * scale,
        "marker": _MARKER[role],
        "markersize": size * scale,
        "markeredgecolor": _PAPER,
        "markeredgewidth": 0.8 * scale,
    }


def _axis_top(results: Results, panels: list[Panel]) -> float:
    shown = [c for c in _all_conditions(results) if any(p.select(c) or p.anchor(c) for p in panels)]
    highest = max((100 * max(c["wer"], *(c["wer_ci"] or [])) for c in shown if c["wer"] is not None), default=0.0)
    return min(max(5.0, 1.05 * highest), 100 * _WER_AXIS_LIMIT)


def _draw_panel(axes: Axes, results: Results, panel: Panel, top: float, small: bool) -> None:
    snrs_db = _snrs_db(_all_conditions(results))
    step = min((a - b for a, b in pairwise(snrs_db)), default=5.0)
    anchor_x = (snrs_db[0] if snrs_db else 0.0) + 1.25 * step
    is_cut = False
    n_systems = len(results["systems"])
    for i, (system, (colour, _)) in enumerate(zip(results["systems"], _colours(results), strict=True)):
        chosen = [c for c in system["conditions"] if panel.select(c)]
        points = [_mean_cell(c for c in chosen if c["snr_db"] == snr_db) for snr_db in snrs_db]
        anchor = _mean_cell(filter(panel.anchor, system["conditions"]))
        # What was not measured becomes NaN, which leaves a gap.
        cells = [anchor, *points]
        wer, lo, hi = 100 * np.array([(cell.wer, cell.lo, cell.hi) for cell in cells], dtype=float).T
        style = _style(system, colour, small)
        style["zorder"] = 4 if system["role"] == "student" else 3
        axes.plot(snrs_db, wer[1:], **style)
        axes.fill_between(snrs_db, lo[1:], hi[1:], color=colour, alpha=0.16, linewidth=0, zorder=2)
        beside_x = anchor_x - 0.22 * step * (i - (n_systems - 1) / 2)  # so that equal systems do not hide each other
        axes.plot([beside_x], wer[:1], **style)
        axes.vlines([beside_x], lo[:1], hi[:1], color=colour, alpha=0.4, zorder=2)
        is_cut |= bool((wer > top).any())
    size = 7.5 if small else 10
    axes.set_title(panel.title, loc="left", size=size + 0.5, color=_INK, weight="bold")
    if small and panel.seen is not None:
        axes.set_title("seen" if panel.seen else "unseen", loc="right", size=size, color=_MUTED)
    if is_cut:
        axes.annotate(
            f"axis cut at {top:g}%", (0.99, 0.97), xycoords="axes fraction", ha="right", va="top", size=7, color=_MUTED
        )
    axes.set_xlim(anchor_x + 0.6 * step, (snrs_db[-1] if snrs_db else 0.0) - 0.5 * step)
    axes.set_ylim(0, top)
    axes.set_xticks([anchor_x, *snrs_db], [panel.anchor_label, *map(_snr, snrs_db)])
    axes.tick_params(colors=_MUTED, labelsize=size, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    if snrs_db:
        axes.axvline(anchor_x - 0.6 * step, color=_GRID, linewidth=0.7, linestyle=(0, (2, 3)))
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _inline_svg(figure: Figure, results: Results, description: str) -> str:
    """Return a figure as an SVG element whose colours are the page's CSS variables, so that it follows its theme."""
    import matplotlib
    from markupsafe import escape

    file = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to groups, and several figures share a page
    svg = re.sub(r'(<svg[^>]*?) width="[\d.]+pt" height="[\d.]+pt"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
    variables = {_INK: "ink", _MUTED: "muted", _GRID: "grid", _PAPER: "paper"}
    variables |= {light: f"s{i}" for i, (light, _) in enumerate(_colours(results))}
    for colour, name in variables.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


# ---------------------------------------------------------------------------------------------------------------
# The page


def write_report(folder: Path, results: Results, utterances: list[dict[str, Any]]) -> Path:
    """Write ``report.html``: one file that opens without a network and needs no scripts.

    Args:
        folder: the run folder.
        results: what ``results.json`` holds; its optional ``config`` (YAML text), ``overrides`` (list) and
            ``environment`` (mapping) are shown too.
        utterances: a row for each system, condition and utterance, with the texts and their errors.

    Returns:
        The path of the page.
    """
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": _percent, "snr": _snr, "count": _count, "tint": _tint}
    has_noises = len({_key(c) for c in _with_snr(results)}) > 1

    def svg(draw: Callable[[Results], Figure], description: str) -> Markup:
        return Markup(_inline_svg(draw(results), results, description))

    page = environment.get_template("report.html.j2").render(
        results=results,
        headline=_headline(results),
        colours=_colours(results),
        colour_of={system["name"]: i for i, system in enumerate(results["systems"])},
        label_of={system["name"]: _label(system) for system in results["systems"]},
        main_figure=svg(_figure_means, "Word error rate against SNR for each system"),
        noise_figure=svg(_figure_by_noise, "Word error rate against SNR by noise type") if has_noises else None,
        table=wer_table(results),
        words=_words,
        quality=_quality_tables(results),
        costs=_costs(results),
        worst={system["name"]: _worst(system["name"], utterances) for system in results["systems"]},
        mixtures={name: _plain(value) for name, value in (results.get("mixtures") or {}).items()},
        environment={name: _plain(value) for name, value in (results.get("environment") or {}).items()},
    )
    path = folder / "report.html"
    unfinished = folder / ".report.html.tmp"
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)
    return path


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _tint(wer: float | None) -> str:
    """Return how strongly a cell is coloured: from 0 to 0.5 at a WER of 100%."""
    return f"{0.5 * min(wer or 0.0, 1.0):.3f}"


def _first(results: Results, role: str) -> System | None:
    return next((system for system in results["systems"] if system["role"] == role), None)


def _clean(system: System) -> Cell:
    return _mean_cell(c for c in system["conditions"] if not is_noisy(c))


def _headline(results: Results) -> dict[str, Any]:
    """Collect the numbers of the summary: the first student beside the first teacher, and every system's two means."""
    teacher, student = _first(results, "teacher"), _first(results, "student")
    share = student["params"] / teacher["params"] if student and teacher and teacher["params"] else None
    return {
        "teacher": teacher,
        "student": student,
        "params_share": None if share is None else f"{100 * share:.3g}",
        "systems": [
            {"system": system, "noisy": mean_noisy(system), "clean": _clean(system)} for system in results["systems"]
        ],
    }


def _quality_tables(results: Results) -> list[dict[str, Any]]:
    """Arrange the quality of the input audio, which is the same for every system, by condition and SNR."""
    conditions: list[Condition] = max((system["conditions"] for system in results["systems"]), key=len)
    tables = []
    for metric, (name, unit) in _QUALITY.items():
        scored = [c for c in conditions if c.get(metric) is not None]
        if not scored:
            continue
        snrs_db: list[float | None] = [*_snrs_db(scored)]
        if any(c["snr_db"] is None for c in scored):
            snrs_db.insert(0, None)
        rows = []
        for key in _keys(scored):
            group = [c for c in scored if _key(c) == key]
            at = {c["snr_db"]: c for c in group}
            rows.append({"title": _title(*key), "seen": key[2], "cells": [at.get(snr_db) for snr_db in snrs_db]})
        tables.append({"metric": metric, "name": name, "unit": unit, "snrs_db": snrs_db, "rows": rows})
    return tables


def _costs(results: Results) -> list[dict[str, Any]]:
    teacher = _first(results, "teacher")
    rows = []
    for system in results["systems"]:
        share = system["params"] / teacher["params"] if teacher and teacher["params"] else None
        faster = teacher["rtf"] / system["rtf"] if teacher and teacher["rtf"] and system["rtf"] else None
        rows.append({"system": system, "params_share": share, "faster": faster})
    return rows


def _worst(name: str, utterances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the utterances with the most word errors in noise, each once, in its worst condition."""
    noisy = [u for u in utterances if u["system"] == name and is_noisy(u) and u["errors"]]
    noisy.sort(key=lambda u: (-u["errors"], u["n_words"], u["id"]))
    worst: dict[str, dict[str, Any]] = {}
    for utterance in noisy:
        worst.setdefault(utterance["id"], utterance)
    return [
        utterance
        | {
            "title": _title(*_key(utterance)),
            "chunks": align_words(utterance["reference"], utterance["hypothesis"]),
        }
        for utterance in list(worst.values())[:_N_WORST]
    ]
