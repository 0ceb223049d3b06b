"""The sections of a report that hold scores: at a glance, joints, errors, groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from posepipe import html_page
from posepipe.html_page import Cell, count, number, percent, share_cell
from posepipe.material import Material
from posepipe.sources import MEAN_POSE

# Calvo and Cañadillas: best PCKh of their two networks on whole pictures of MPII.
PAPER = {"the paper's CNN (DeepPose-style)": 30, "the paper's ResNet50V2": 50}


def glance(material: Material) -> str:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in material.rows("scores"):
        found.setdefault(row["run"], {})[row["measure"]] = row
    body = ""
    poses = [name for name, measures in found.items() if "pckh" in measures]
    heads = [name for name, measures in found.items() if "head_iou" in measures]
    if poses:
        rows = []
        for name in poses:
            of = found[name]
            rows.append(
                [
                    Cell(name, _framing(material, name)),
                    _score(of.get("pckh"), is_strong=True),
                    _floor(of.get("pckh")),
                    _score(of.get("pckh_bone")),
                    _floor(of.get("pckh_bone")),
                    _score(of.get("auc")),
                    _score(of.get("inverted_joints")),
                    Cell(number(_people_of(material, name)), f"{number(of['pckh']['count'])} joints"),
                ]
            )
        rows += [[Cell(name, "another protocol"), "–", "–", Cell(f"{value} %"), "–", "–", "–", "–"] for name, value in PAPER.items()]
        columns = ["run", "PCKh@0.5, official", "floor", "PCKh@0.5, the paper's", "floor", "AUC", "inversions", "people"]
        body += html_page.table(
            columns, rows, floors=[place for place in range(len(rows)) if place >= len(poses) or poses[place] == MEAN_POSE]
        )
        body += html_page.paragraph(
            "Below each score, its 95 % interval. The floor is the mean pose of labels in the same frame: what a model scores that has not "
            "looked at the picture. The paper's 30 % and 50 % divide by the distance from head top to upper neck, which is about 4/3 more "
            "lenient than the official head size, count all 16 joints, and are of whole pictures of all of MPII: compare them with the "
            "paper's column alone, and only where the picture was not cropped to the person.",
            "note",
        )
    if heads:
        rows = []
        for name in heads:
            of = found[name]
            rows.append(
                [
                    Cell(name, _framing(material, name)),
                    _score(of["head_iou_50"], is_strong=True),
                    _floor(of["head_iou_50"]),
                    _score(of["head_iou_75"]),
                    _score(of["head_iou"]),
                    _floor(of["head_iou"]),
                    _score(of.get("head_centre_error")),
                    _score(of.get("head_size_error")),
                    number(of["head_iou"]["count"]),
                ]
            )
        columns = ["run", "head boxes, IoU ≥ 0.5", "floor", "IoU ≥ 0.75", "mean IoU", "floor", "centre off by", "size off by", "boxes"]
        body += html_page.table(columns, rows)
        body += html_page.paragraph(
            "Centre and size are off by so many head sizes (0.6 x the diagonal of the labelled box), on average.", "note"
        )
    unlabelled = [result for result in material.results if not result.is_labelled]
    if unlabelled:
        rows = [
            [
                result.source.name,
                number(result.source.num_rows),
                share_cell(result.statuses["ok"], result.source.num_rows),
            ]
            for result in unlabelled
        ]
        body += html_page.heading("Without labels") + html_page.table(["run", "rows", "predicted"], rows)
    notes = [note for result in material.results for note in result.source.notes]
    for result in material.results:
        if missing := result.counts.pose.num_missing:
            labelled = number(int(result.counts.pose.official.labelled.sum()))
            notes.append(
                f"{result.source.name}: {count(missing, 'labelled joint')} of {labelled} without a prediction, all of them misses."
            )
    body += html_page.items(notes)
    if material.rows("scores"):
        everything = [[row["run"], row["label"], *_plain(row), f"{number(row['count'])} {row['of']}"] for row in material.rows("scores")]
        columns = ["run", "score", "value", "95 % interval", "floor", "counted over"]
        body += html_page.details("All scores", html_page.table(columns, everything, text_columns=(0, 1)))
    return body


def joints(material: Material) -> str:
    if "joints" not in material.plots:
        return ""
    figures = [
        (
            material.plots["joints"],
            "Bars of PCKh at 0.5 per joint and run",
            "Share of each joint's labels that the prediction hits within half a head size. Thin lines are 95 % intervals; pelvis and "
            "thorax are pale: they do not count in official PCKh.",
        ),
        (
            material.plots["curve"],
            "Curves of PCKh over the threshold, one per run",
            "The same share of the 14 joints, pooled, as the threshold grows. Far left is precision, far right is whether the joint was "
            "found at all.",
        ),
    ]
    rows = [
        [
            row["run"],
            row["joint"].replace("_", " "),
            Cell(f"{row['pckh']:.1f} %", _interval(row, "%"), share=row["pckh"] / 100),
            number(row["correct"]),
            number(row["labelled"]),
        ]
        for row in material.rows("joints")
        if row["labelled"]
    ]
    columns = ["run", "joint", "PCKh@0.5", "within", "labelled"]
    return html_page.plots(figures) + html_page.details("The numbers", html_page.table(columns, rows, text_columns=(0, 1)))


def errors(material: Material) -> str:
    figures = []
    if "errors" in material.plots:
        caption = "Labelled joints by how far off they are. Left of the dotted line they count as found; the last bin holds all from 1 on."
        figures.append((material.plots["errors"], "Histograms of joint errors by group of joints", caption))
    if "iou" in material.plots:
        caption = "Share of the labelled head boxes by their overlap with the prediction. 0 holds those that do not touch at all."
        figures.append((material.plots["iou"], "Histogram of the IoU of head boxes", caption))
    if not figures:
        return ""
    rows: list[list[Cell | str]] = []
    for result in material.results:
        if result.has_pose and result.counts.pose.inversions.num_pairs:
            found = result.counts.pose.inversions
            rows.append(
                [
                    result.source.name,
                    Cell(percent(found.joint_rate), f"{number(found.inverted)} of {number(found.num_joints)}"),
                    Cell(
                        percent(found.pair_rate),
                        f"{number(found.swapped_pairs)} of {number(found.num_pairs)}",
                    ),
                ]
            )
    body = html_page.plots(figures)
    if rows:
        body += html_page.heading("Left for right") + html_page.table(["run", "inverted joints", "swapped pairs"], rows)
        body += html_page.paragraph(
            "A joint is inverted where it misses its label but lies within half a head size of the same joint of the other side; a pair "
            "is swapped where both are. Counted over pairs whose two labels exist (Ronchi and Perona, ICCV 2017).",
            "note",
        )
    return body


def slices(material: Material) -> str:
    figures = []
    for measure, text in (("pckh", "PCKh"), ("head_iou_50", "head boxes")):
        if f"slices_{measure}" in material.plots:
            caption = "Each dot is the score of one group, its line the 95 % interval, in brackets its people."
            figures.append((material.plots[f"slices_{measure}"], f"Scores of {text} by group", caption))
    if not figures:
        return ""
    rows = [
        [
            row["run"],
            row["by"],
            row["group"],
            Cell(f"{row['value']:.1f} %", _interval(row, "%"), share=row["value"] / 100),
            number(row["people"]),
            f"{number(row['count'])} {row['of']}",
        ]
        for row in material.rows("slices")
    ]
    table = html_page.table(["run", "by", "group", "score", "people", "counted over"], rows, text_columns=(0, 1, 2))
    return html_page.plots(figures) + html_page.details("The numbers", table)


def _framing(material: Material, name: str) -> str:
    summary = next(result.source.summary for result in material.results if result.source.name == name)
    framing = summary.get("framing")
    return "" if framing is None else "person framing from the label" if framing == "person" else f"{framing} framing"


def _people_of(material: Material, name: str) -> int:
    return next(result.counts.pose.num_people for result in material.results if result.source.name == name)


def _score(row: dict[str, Any] | None, *, is_strong: bool = False) -> Cell | str:
    if row is None or not np.isfinite(row["value"]):
        return "–"
    text = f"{row['value']:.1f} %" if row["unit"] == "%" else f"{row['value']:.3f}"
    return Cell(text, _interval(row, row["unit"]), is_strong)


def _floor(row: dict[str, Any] | None) -> str:
    return "–" if row is None or row["floor"] is None or not np.isfinite(row["floor"]) else f"{row['floor']:.1f} %"


def _interval(row: dict[str, Any], unit: str) -> str:
    digits = 1 if unit in ("%", "px²") else 3
    return "" if row["low"] is None or not np.isfinite(row["low"]) else f"{row['low']:.{digits}f} – {row['high']:.{digits}f}"


def _plain(row: dict[str, Any]) -> tuple[str, str, str]:
    value = (
        "nothing predicted for some"
        if np.isinf(row["value"])
        else f"{row['value']:.2f} {row['unit']}"
        if row["value"] == row["value"]
        else "–"
    )
    return value, _interval(row, row["unit"]) or "–", _floor(row)
