"""Plots of a sweep: what is drawn, read back from the figure or its pixels."""

import io
import itertools
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from posepipe import sweep_plots


def trial(number: int, objective: float | None, epochs: int, status: str, **parameters: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    history = [{"epoch": epoch, "objective": (objective or 0) * epoch / epochs} for epoch in range(1, epochs + 1)]
    return {"trial_id": f"trial-{number:03d}", **parameters, "status": status, "objective": objective}, history


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn."""
    drawn: list[Figure] = []

    def keep(figure: Figure, png: Any = sweep_plots._png) -> bytes:
        drawn.append(figure)
        return png(figure)

    monkeypatch.setattr(sweep_plots, "_png", keep)
    return drawn


SWEEP = [
    trial(0, 0.2, 2, "stopped early", learning_rate=1e-4, batch_size=32),
    trial(1, 0.6, 4, "completed", learning_rate=1e-3, batch_size=32),
    trial(2, 0.7, 4, "completed", learning_rate=1e-3, batch_size=32),
    trial(3, None, 0, "failed", learning_rate=1e-4, batch_size=64),
]
ROWS, HISTORIES = [row for row, _ in SWEEP], [history for _, history in SWEEP]


def test_a_cell_holds_the_best_of_its_trials(figures: list[Figure]) -> None:
    sweep_plots.heat_map(ROWS, "IoU")
    axes = figures[0].axes[0]
    assert {text.get_text(): text.get_position() for text in axes.texts} == {"20.0": (0, 0), "70.0\n2 trials": (1, 0)}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1e-4", "1e-3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["32", "64"], "also what nothing was scored of"


def test_many_learning_rates_share_columns() -> None:
    values = [10 ** (-5 + number / 10) for number in range(31)]
    columns = sweep_plots._columns(values)
    assert len(columns) == sweep_plots.MAX_COLUMNS
    assert (columns[0][0], columns[-1][1]) == (values[0], values[-1])
    assert all(any(low <= value <= high for low, high in columns) for value in values)
    assert sweep_plots._columns([1e-3, 1e-4, 1e-3]) == [(1e-4, 1e-4), (1e-3, 1e-3)]


def test_curves_end_where_their_trial_ended_with_a_mark_of_how(figures: list[Figure]) -> None:
    sweep_plots.curves(ROWS, HISTORIES, "IoU")
    ends = [(line.get_marker(), *(float(values[0]) for values in line.get_data())) for line in figures[0].axes[0].lines[1::2]]
    assert ends == [("x", 2, 20), ("o", 4, 60), ("o", 4, 70)]
    widths = [line.get_linewidth() for line in figures[0].axes[0].lines[::2]]
    assert widths[2] > widths[0] == widths[1], "the best one is bold"
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["best: trial-002", "completed", "stopped early"]


def test_only_where_both_were_searched_there_is_a_heat_map() -> None:
    assert set(sweep_plots.draw(ROWS, HISTORIES, ["batch_size", "learning_rate"], "IoU")) == {"curves.png", "heat_map.png"}
    only = sweep_plots.draw(ROWS, HISTORIES, ["learning_rate"], "IoU")
    assert set(only) == {"curves.png", "objective_learning_rate.png"}
    for png in only.values():
        assert Image.open(io.BytesIO(png)).width == round(sweep_plots.WIDTH * sweep_plots.DPI)


@pytest.mark.parametrize(
    ("values", "scale", "ticks"),
    [
        ((1e-5, 1e-3), "log", ["1e-5", "2e-5", "5e-5", "1e-4", "2e-4", "5e-4", "1e-3", "2e-3", "5e-3"]),
        ((True, False), "linear", ["False", "True"]),
        (("resnet18", "hrnet_w32"), "linear", ["hrnet_w32", "resnet18"]),
    ],
)
def test_values_have_the_axis_of_their_kind(figures: list[Figure], values: tuple[Any, Any], scale: str, ticks: list[str]) -> None:
    rows = [{"trial_id": str(value), "field": value, "status": "completed", "objective": 0.5} for value in values]
    sweep_plots.by_field(rows, "field", "IoU")
    axes = figures[0].axes[0]
    assert axes.get_xscale() == scale
    assert [label.get_text() for label in axes.get_xticklabels()] == ticks


@pytest.mark.parametrize("number", [2, 6])
def test_names_are_set_aslant_where_they_would_overlap(figures: list[Figure], number: int) -> None:
    names = ["convnext_atto", "efficientnet_b0", "hrnet_w32", "mobilenetv2_100", "resnet18", "resnet34"][:number]
    sweep_plots.by_field([{"field": name, "status": "completed", "objective": 0.5} for name in names], "field", "IoU")
    labels = figures[0].axes[0].get_xticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert all(label.get_rotation() == (30 if number == 6 else 0) for label in labels)
    assert number == 6 or not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_trials_that_all_scored_the_same_are_drawn() -> None:
    same = [trial(number, 0.0, 1, "completed", learning_rate=1e-3, batch_size=32 * (number + 1)) for number in range(2)]
    drawn = sweep_plots.draw([row for row, _ in same], [history for _, history in same], ["learning_rate", "batch_size"], "IoU")
    assert set(drawn) == {"curves.png", "heat_map.png"}
