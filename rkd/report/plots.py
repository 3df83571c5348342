"""Plots of the word error rate against SNR: mean over noise types, and a panel for each noise type."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rkd.report.table import (
    Condition,
    Results,
    System,
    all_conditions,
    distinct_snrs_db,
    group_key,
    group_keys,
    mean_cell,
    of_speech,
    snr_text,
    title_of,
    with_snr,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def plot_wer(results: Results, path: Path) -> None:
    """Draw WER against SNR, mean over noise types: a line for each system, panels for unseen noise and for rooms.

    The bands average the 95% bootstrap intervals of the conditions.

    Args:
        path: the file to write; its suffix (.png, .svg, .pdf) is its format.
    """
    _save(figure_of_means(of_speech(results)), path)


def plot_wer_by_noise(results: Results, path: Path) -> None:
    """Draw WER against SNR in a small panel for each noise type, with 95% bootstrap intervals.

    Args:
        path: the file to write; its suffix (.png, .svg, .pdf) is its format.
    """
    _save(figure_by_noise(of_speech(results)), path)


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


def system_colours(results: Results) -> list[tuple[str, str]]:
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
    if in_room and any(c["condition"] == "reverb" for c in all_conditions(results)):
        return Panel(title, seen, select, "room\nonly", lambda c: c["condition"] == "reverb")
    return Panel(title, seen, select, "clean", lambda c: c["condition"] == "clean")


def figure_of_means(results: Results) -> Figure:
    def place(c: Condition) -> tuple[bool, bool | None]:
        return "reverb" in c["condition"], c["seen"]

    titles = {True: "noise seen in training", False: "noise unseen in training", None: "noise"}
    panels = []
    for where in sorted(set(map(place, with_snr(results))), key=lambda w: (w[0], w[1] is False)):
        in_room, seen = where
        title = titles[seen] + ", in rooms" * in_room
        panels.append(_panel(results, title, seen, in_room, lambda c, where=where: place(c) == where))
    if not panels:
        panels.append(_panel(results, "no noise", None, False, lambda c: False))
    return _figure(results, panels, columns=min(2, len(panels)), panel_inches=(5.2, 3.4), small=False)


def figure_by_noise(results: Results) -> Figure:
    panels = [
        _panel(results, title_of(*key), key[2], "reverb" in key[0], lambda c, key=key: group_key(c) == key)
        for key in group_keys(with_snr(results))
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
        styles = zip(results["systems"], system_colours(results), strict=True)
        handles = [Line2D([], [], label=name_with_role(s), **_style(s, colour, small)) for s, (colour, _) in styles]
        legend = figure.legend(handles=handles, loc="outside upper left", ncols=2 if width < 6 else 4, fontsize=size)
        legend.set_frame_on(False)
        for text in legend.get_texts():
            text.set_color(_INK)
    return figure


def name_with_role(system: System) -> str:
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
    shown = [c for c in all_conditions(results) if any(p.select(c) or p.anchor(c) for p in panels)]
    highest = max((100 * max(c["wer"], *(c["wer_ci"] or [])) for c in shown if c["wer"] is not None), default=0.0)
    return min(max(5.0, 1.05 * highest), 100 * _WER_AXIS_LIMIT)


def _draw_panel(axes: Axes, results: Results, panel: Panel, top: float, small: bool) -> None:
    snrs_db = distinct_snrs_db(all_conditions(results))
    step = min((a - b for a, b in pairwise(snrs_db)), default=5.0)
    anchor_x = (snrs_db[0] if snrs_db else 0.0) + 1.25 * step
    is_cut = False
    n_systems = len(results["systems"])
    for i, (system, (colour, _)) in enumerate(zip(results["systems"], system_colours(results), strict=True)):
        chosen = [c for c in system["conditions"] if panel.select(c)]
        points = [mean_cell(c for c in chosen if c["snr_db"] == snr_db) for snr_db in snrs_db]
        anchor = mean_cell(filter(panel.anchor, system["conditions"]))
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
    axes.set_xticks([anchor_x, *snrs_db], [panel.anchor_label, *map(snr_text, snrs_db)])
    axes.tick_params(colors=_MUTED, labelsize=size, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    if snrs_db:
        axes.axvline(anchor_x - 0.6 * step, color=_GRID, linewidth=0.7, linestyle=(0, (2, 3)))
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def inline_svg(figure: Figure, results: Results, description: str) -> str:
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
    variables |= {light: f"s{i}" for i, (light, _) in enumerate(system_colours(results))}
    for colour, name in variables.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
