"""Plots of a sweep, as PNG: objective by learning rate and batch size, or by each searched field; curves of all trials."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from posepipe.plots import COLOURS, DPI, WIDTH

Row = Mapping[str, Any]

PALE, INK = "#9a9a9a", "#222222"
MAX_COLUMNS = 6  # of a heat map; more learning rates are put together
MAX_LETTERS = 45  # of the names beside one another below an axis; more are set aslant


def draw(rows: Sequence[Row], histories: Sequence[Sequence[Row]], fields: Sequence[str], label: str) -> dict[str, bytes]:
    """File name -> PNG.

    Args:
        rows: of the table of trials, at least one with an objective.
        histories: of the same trials.
        fields: that were searched.
        label: of the objective, which is a share of 1.
    """
    drawn = {"curves.png": curves(rows, histories, label)}
    if {"learning_rate", "batch_size"} <= set(fields):
        return drawn | {"heat_map.png": heat_map(rows, label)}
    return drawn | {f"objective_{field}.png": by_field(rows, field, label) for field in fields}


def heat_map(rows: Sequence[Row], label: str) -> bytes:
    """The best objective of each learning rate and batch size; so many learning rates are put together that the cells can be read."""
    scored = [row for row in rows if row["objective"] is not None]
    columns = _columns([row["learning_rate"] for row in rows])
    sizes = sorted({row["batch_size"] for row in rows})
    cells = np.full((len(sizes), len(columns)), np.nan)
    counts = np.zeros(cells.shape, int)
    for row in scored:
        place = sizes.index(row["batch_size"]), next(i for i, (_, high) in enumerate(columns) if row["learning_rate"] <= high)
        cells[place] = np.fmax(cells[place], 100 * row["objective"])
        counts[place] += 1
    figure, axes = _figure(1.5 + 0.5 * len(sizes))
    low, high = np.nanmin(cells), np.nanmax(cells)
    image = axes.imshow(cells, cmap="cividis", aspect="auto", vmin=low, vmax=max(high, low + 1))
    axes.set_facecolor("#eeeeee")
    axes.grid(False)
    for (y, x), value in np.ndenumerate(cells):
        if np.isfinite(value):
            is_dark = value < low + 0.55 * max(high - low, 1)
            text = f"{value:.1f}" + (f"\n{counts[y, x]} trials" if counts[y, x] > 1 else "")
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if is_dark else INK)
    best = np.unravel_index(int(np.nanargmax(cells)), cells.shape)
    axes.add_patch(Rectangle((best[1] - 0.5, best[0] - 0.5), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2.2, clip_on=False))
    names = [_number(one) if one == other else f"{_number(one)}–\n{_number(other)}" for one, other in columns]
    axes.set_xticks(range(len(columns)), names, fontsize=8)
    axes.set_yticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_xlabel("learning rate")
    axes.set_ylabel("batch size")
    axes.set_title(f"best {label}, %", loc="left", fontsize=10)
    figure.colorbar(image, ax=axes)
    return _png(figure)


def _columns(values: Sequence[float]) -> list[tuple[float, float]]:
    """(lowest, highest) of each column: a value each, or intervals of equal ratios where there are too many values."""
    distinct = sorted(set(values))
    if len(distinct) <= MAX_COLUMNS:
        return [(value, value) for value in distinct]
    edges = np.geomspace(distinct[0], distinct[-1], MAX_COLUMNS + 1)[1:]
    edges[-1] = distinct[-1]
    groups = [[value for value in distinct if low < value <= high] for low, high in zip([-math.inf, *edges], edges, strict=False)]
    return [(group[0], group[-1]) for group in groups if group]


def by_field(rows: Sequence[Row], field: str, label: str) -> bytes:
    """The objective of each trial over one searched field."""
    values = [row[field] for row in rows]
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    names = sorted({str(value) for value in values})
    figure, axes = _figure(3.0)
    for row in rows:
        if row["objective"] is not None:
            x = row[field] if is_number else names.index(str(row[field]))
            axes.plot(x, 100 * row["objective"], **_marker(row["status"]), linestyle="", clip_on=False, zorder=3)
    if not is_number:
        axes.set_xticks(range(len(names)), names)
        if sum(map(len, names)) > MAX_LETTERS:
            axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif min(values) > 0 and max(values) / min(values) >= 8:
        axes.set_xscale("log")
        _log_ticks(axes, min(values), max(values))
    axes.set_xlabel(field.replace("_", " "))
    axes.set_ylabel(f"{label}, %")
    _legend(figure, {row["status"] for row in rows})
    return _png(figure)


def _log_ticks(axes: Axes, low: float, high: float) -> None:
    """1, 2 and 5 of each decade, or the decades alone where there are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 3 else (1,)
    axes.xaxis.set_major_locator(FixedLocator([step * 10.0**decade for decade in decades for step in steps]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))


def curves(rows: Sequence[Row], histories: Sequence[Sequence[Row]], label: str) -> bytes:
    """The objective of all trials over the epochs; where a trial was stopped early or failed there is a mark, the best one is bold."""
    scored = [row for row in rows if row["objective"] is not None]
    best = max(scored, key=lambda row: row["objective"])["trial_id"]
    figure, axes = _figure(3.4)
    for row, history in zip(rows, histories, strict=True):
        if not history:
            continue
        is_best = row["trial_id"] == best
        points = np.transpose([(each["epoch"], 100 * each["objective"]) for each in history])
        mark = _marker(row["status"])
        colour = COLOURS[2] if is_best else mark["color"]
        axes.plot(*points, color=colour, linewidth=2.4 if is_best else 1.0, alpha=1.0 if is_best else 0.75, zorder=4 if is_best else 2)
        axes.plot(points[0][-1], points[1][-1], **{**mark, "color": colour}, linestyle="", zorder=5, clip_on=False)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{label}, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, {row["status"] for row in scored}, best)
    return _png(figure)


def _marker(status: str) -> dict[str, Any]:
    shapes = {"completed": ("o", COLOURS[0]), "stopped early": ("x", PALE), "failed": ("X", COLOURS[1])}
    marker, colour = shapes.get(status, (".", PALE))
    return {"marker": marker, "color": colour, "markersize": 6, "markeredgewidth": 1.6 if marker == "x" else 0.6}


def _legend(figure: Figure, statuses: set[str], best: str | None = None) -> None:
    handles = [Line2D([], [], color=COLOURS[2], linewidth=2.4, label=f"best: {best}")] if best else []
    for status in ("completed", "stopped early", "failed"):
        if status in statuses:
            handles.append(Line2D([], [], linewidth=1.0 if best else 0, label=status, **_marker(status)))
    figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, fontsize=9)


def _number(value: float) -> str:
    """Short: 0.0005 -> 5e-4."""
    text = f"{value:.2g}"
    if 0 < abs(value) < 0.01:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    return text


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    FigureCanvasAgg(figure).print_png(sink)
    return sink.getvalue()
