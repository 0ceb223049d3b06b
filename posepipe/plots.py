"""Plots of tables, as PNG.

Every figure is narrow enough to be read on a phone. Runs keep their colour over all of them: Okabe and Ito's palette, and beyond its seven
colours other line styles and markers.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from posepipe.diagnosis import HISTOGRAM_BINS, HISTOGRAM_STEP
from posepipe.metrics import IntArray
from posepipe.skeleton import PCKH_GROUPS

Row = Mapping[str, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
WIDTH = 5.4  # inch
DPI = 150
MAX_POINTS = 4000
MAX_BARS = 3  # of runs


def per_joint(rows: Sequence[Row], runs: Sequence[str]) -> bytes:
    """PCKh@0.5 of each joint (rows of `scores.joint_rows`) with intervals; pelvis and thorax are pale, they do not count.

    Bars, or dots where there are more runs than bars can be told apart.
    """
    joints = list(dict.fromkeys(row["joint"] for row in rows))
    order = sorted(joints, key=lambda name: (_ORDER.index(name.split("_")[-1]), name))
    is_bars = len(runs) <= MAX_BARS
    figure, axes = _figure(1.2 + len(order) * (0.1 + 0.15 * len(runs) if is_bars else 0.36))
    height = 0.8 / len(runs)
    for index, run in enumerate(runs):
        found = {row["joint"]: row for row in rows if row["run"] == run}
        for place, joint in enumerate(order):
            row = found[joint]
            if np.isnan(row["pckh"]):
                continue
            y = place + (index - (len(runs) - 1) / 2) * height
            alpha = 1.0 if row["in_pckh"] else 0.35
            if is_bars:
                axes.barh(y, row["pckh"], height * 0.92, color=_colour(index), alpha=alpha)
            else:
                axes.plot(row["pckh"], y, _marker(index), color=_colour(index), alpha=alpha, markersize=4)
            if np.isfinite(row["low"]):
                axes.plot([row["low"], row["high"]], [y, y], color="#222222" if is_bars else _colour(index), linewidth=1.1)
        if is_bars:
            axes.barh(np.nan, np.nan, color=_colour(index), label=run)
        else:
            axes.plot([], [], f"{_marker(index)}-", color=_colour(index), label=run)
    axes.set_yticks(range(len(order)), [name.replace("_", " ") for name in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("PCKh@0.5, official, %")
    _legend(figure, axes, runs)
    return _png(figure)


_ORDER = ("top", "neck", "thorax", "shoulder", "elbow", "wrist", "pelvis", "hip", "knee", "ankle")


def curves(rows: Sequence[Row], runs: Sequence[str]) -> bytes:
    """PCKh over the threshold (rows of `scores.curve_rows`)."""
    figure, axes = _figure(3.7)
    for index, run in enumerate(runs):
        points = [(row["threshold"], row["pckh"]) for row in rows if row["run"] == run]
        axes.plot(*np.transpose(points), color=_colour(index), linestyle=_style(index), label=run)
    axes.set_xlim(0, 0.5)
    axes.set_ylim(0, 100)
    axes.set_xlabel("threshold, head sizes")
    axes.set_ylabel("joints within it, % (official PCKh)")
    _legend(figure, axes, runs)
    return _png(figure)


def error_histograms(histograms: Mapping[str, IntArray]) -> bytes:
    """Share of the joints of each group by how far off they are; histograms: run -> (16, 21) as `diagnosis.error_histogram` counts."""
    figure = Figure(figsize=(WIDTH, 6.6), dpi=DPI, layout="constrained")
    grid = figure.subplots(4, 2, sharex=True, sharey=True)
    edges = np.arange(HISTOGRAM_BINS + 1) * HISTOGRAM_STEP
    for axes, (group, joints) in zip(grid.ravel(), PCKH_GROUPS.items(), strict=True):
        _bare(axes)
        for index, (_, histogram) in enumerate(histograms.items()):
            counts = histogram[list(joints)].sum(axis=0)
            if counts.sum():
                axes.stairs(100 * counts / counts.sum(), edges, color=_colour(index), linestyle=_style(index), linewidth=1.4)
        axes.axvline(0.5, color="#222222", linewidth=0.8, linestyle=":")
        axes.set_title(group.replace("_", " "), fontsize=10, loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("error, head sizes")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.025], ["0", ".25", ".5", ".75", "≥ 1"])
    for axes in grid[:, 0]:
        axes.set_ylabel("joints, %")
    for index, run in enumerate(histograms):
        grid[0, 0].plot([], [], color=_colour(index), linestyle=_style(index), label=run)
    _legend(figure, grid[0, 0], list(histograms))
    return _png(figure)


def unit_histogram(histograms: Mapping[str, IntArray], label: str) -> bytes:
    """Shares of something in [0, 1]; histograms: run -> (20,) counts."""
    figure, axes = _figure(3.1)
    for index, (run, counts) in enumerate(histograms.items()):
        edges = np.linspace(0, 1, len(counts) + 1)
        axes.stairs(
            100 * counts / max(1, counts.sum()),
            edges,
            color=_colour(index),
            linestyle=_style(index),
            linewidth=1.5,
            label=run,
            fill=len(histograms) == 1,
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("share, %")
    _legend(figure, axes, list(histograms))
    return _png(figure)


def slices(rows: Sequence[Row], runs: Sequence[str]) -> bytes:
    """Scores of groups with their intervals (rows of `scores.slice_rows`), one line per group."""
    groups = list(dict.fromkeys((row["by"], row["group"]) for row in rows))
    people = {group: max(row["people"] for row in rows if (row["by"], row["group"]) == group) for group in groups}
    figure, axes = _figure(1.1 + 0.27 * len(groups) + 0.02 * len(groups) * len(runs))
    for index, run in enumerate(runs):
        offset = (index - (len(runs) - 1) / 2) * 0.6 / len(runs)
        for row in (row for row in rows if row["run"] == run):
            y = groups.index((row["by"], row["group"])) + offset
            if np.isfinite(row["low"]):
                axes.plot([row["low"], row["high"]], [y, y], color=_colour(index), linewidth=1.6)
            axes.plot(row["value"], y, _marker(index), color=_colour(index), markersize=4.5, clip_on=False, zorder=3)
        axes.plot([], [], f"{_marker(index)}-", color=_colour(index), label=run)
    for place in range(1, len(groups)):
        if groups[place][0] != groups[place - 1][0]:
            axes.axhline(place - 0.5, color="#bbbbbb", linewidth=0.8)
    axes.set_yticks(range(len(groups)), [f"{_shortened(group)}  ({people[by, group]:,})" for by, group in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("PCKh@0.5, official, %" if rows[0]["measure"] == "pckh" else "head boxes with IoU ≥ 0.5, %")
    _legend(figure, axes, runs)
    return _png(figure)


def training(
    history: Sequence[Row], names: Sequence[tuple[str, str, str]], label: str, scale: float = 1.0, floor: float | None = None
) -> bytes:
    """Values over the epochs; names: (key in the history, legend, line style); floor: what the mean pose scores."""
    figure, axes = _figure(3.0)
    for index, (key, legend, style) in enumerate(names):
        points = [(row["epoch"], scale * row[key]) for row in history if row.get(key) is not None]
        if points:
            axes.plot(*np.transpose(points), color=_colour(index), linestyle=style, marker="o", markersize=2.5, label=legend)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if floor is not None:
        axes.axhline(scale * floor, color="#555555", linewidth=1, linestyle="-.", label="floor of the solid line")
    if scale == 100:
        axes.set_ylim(0, 100)
    _legend(figure, axes, [legend for _, legend, _ in names])
    return _png(figure)


def scatter(one: ArrayLike, other: ArrayLike, names: tuple[str, str]) -> bytes:
    """Errors of the same people in two runs; many people are binned."""
    x, y = np.asarray(one, np.float64), np.asarray(other, np.float64)
    figure, axes = _figure(4.2)
    if len(x) > MAX_POINTS:
        binned = axes.hexbin(x, y, gridsize=40, bins="log", extent=(0, 1, 0, 1), cmap="cividis", mincnt=1, linewidths=0)
        figure.colorbar(binned, ax=axes, label="people")
    else:
        axes.plot(x, y, "o", color=_colour(0), markersize=3.5, alpha=0.5, markeredgewidth=0)
    axes.plot([0, 1], [0, 1], color="#222222", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xlabel(f"person error, {_shortened(names[0], 30)}")
    axes.set_ylabel(f"person error, {_shortened(names[1], 30)}")
    return _png(figure)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def _legend(figure: Figure, axes: Axes, runs: Sequence[str]) -> None:
    """Above the plot, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    # It leaves out names that begin with an underscore.
    artists: list[Any] = [*axes.lines, *axes.patches, *axes.containers]
    hidden = [artist for artist in artists if str(artist.get_label()).startswith("_") and artist.get_label() in runs]
    handles, labels = [*handles, *hidden], [*labels, *(str(artist.get_label()) for artist in hidden)]
    if handles:
        columns = 1 if max(map(len, runs)) > 24 else 2 if max(map(len, runs)) > 12 else 3
        figure.legend(handles, map(_shortened, labels), loc="outside upper left", ncols=columns, frameon=False, fontsize=9)


def _shortened(text: str, length: int = 40) -> str:
    # A dollar sign would begin a formula.
    return (text if len(text) <= length else f"…{text[1 - length :]}").replace("$", r"\$")


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _style(index: int) -> str:
    return STYLES[index // len(COLOURS) % len(STYLES)]


def _marker(index: int) -> str:
    return MARKERS[index // len(COLOURS) % len(MARKERS)]


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    FigureCanvasAgg(figure).print_png(sink)
    return sink.getvalue()
