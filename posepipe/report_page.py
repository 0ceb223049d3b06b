"""What the page of a report says: its sections, from tables, plots and drawn people."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from posepipe import html_page, overlays, scores
from posepipe.cases import Case, Film
from posepipe.comparing import Comparison
from posepipe.html_page import Cell
from posepipe.results import Result
from posepipe.runs import Run

MAX_NAMED = 10
# Calvo and Cañadillas: best PCKh of their two networks on whole pictures of MPII.
PAPER = {"the paper's CNN (DeepPose-style)": 30, "the paper's ResNet50V2": 50}
LEGEND = {
    "person's left": overlays.LEFT_COLOUR,
    "person's right": overlays.RIGHT_COLOUR,
    "middle": overlays.MIDDLE_COLOUR,
    "predicted head box": overlays.BOX_COLOUR,
    "label": overlays.TRUTH_COLOUR,
    "off by more than half a head size, with a line to its label": "ring",
}
KINDS = {
    "best": "Best: the smallest person error",
    "median": "Median: as many people are better as are worse",
    "worst": "Worst: the largest person error",
    "sample": "Some predictions, evenly spread over the rows",
}
PERSON_ERROR = (
    "The person error is the mean distance of a person's labelled joints (of the 14 that count) in head sizes, of each joint at most 1; "
    "for head boxes alone it is 1 - IoU. 0 is perfect."
)


@dataclass(frozen=True, eq=False)
class Material:
    """All that goes into a page; `plots` are PNGs by name, `cases` and `films` lie by the name of their run."""

    title: str
    results: Sequence[Result]
    runs: Sequence[Run]
    tables: Mapping[str, pa.Table]
    plots: Mapping[str, bytes]
    cases: Mapping[str, Sequence[Case]]
    comparisons: Sequence[Comparison]
    films: Mapping[str, Sequence[Film]]
    provenance: Mapping[str, Any]
    min_confidence: float

    def rows(self, name: str) -> list[dict[str, Any]]:
        return self.tables[name].to_pylist() if name in self.tables else []


def render(material: Material) -> str:
    """The HTML."""
    names = [result.source.name for result in material.results]
    num_rows = sum(result.source.num_rows for result in material.results)
    parts = [f"{_count(num_rows, 'row')} of {_count(len(names), 'run')} of predictions"] if names else []
    parts += [f"{_count(len(material.runs), 'training run')}"] if material.runs else []
    sections = [
        ("glance", "At a glance", _glance(material)),
        ("joints", "Joints", _joints(material)),
        ("errors", "Errors", _errors(material)),
        ("groups", "Groups of people", _slices(material)),
        ("people", "People to look at", _people(material)),
        ("comparison", "Person by person", "".join(_comparison(material, number) for number in range(1, len(material.comparisons) + 1))),
        ("training", "Training", _training(material)),
        ("inputs", "Inputs", _inputs(material)),
        ("conventions", "Conventions", _conventions(material)),
        ("origin", "Where this comes from", _origin(material)),
    ]
    return html_page.page(material.title, ", ".join(parts), [section for section in sections if section[2]])


def _glance(material: Material) -> str:
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
                    Cell(_number(_people_of(material, name)), f"{_number(of['pckh']['count'])} joints"),
                ]
            )
        rows += [[Cell(name, "another protocol"), "–", "–", Cell(f"{value} %"), "–", "–", "–", "–"] for name, value in PAPER.items()]
        columns = ["run", "PCKh@0.5, official", "floor", "PCKh@0.5, the paper's", "floor", "AUC", "inversions", "people"]
        body += html_page.table(columns, rows, floors=range(len(poses), len(rows)))
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
                    _number(of["head_iou"]["count"]),
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
            [result.source.name, _number(result.source.num_rows), _share(result.statuses["ok"], result.source.num_rows)]
            for result in unlabelled
        ]
        body += html_page.heading("Without labels") + html_page.table(["run", "rows", "predicted"], rows)
    body += html_page.items([note for result in material.results for note in result.source.notes])
    if material.rows("scores"):
        everything = [[row["run"], row["label"], *_plain(row), f"{_number(row['count'])} {row['of']}"] for row in material.rows("scores")]
        columns = ["run", "score", "value", "95 % interval", "floor", "counted over"]
        body += html_page.details("All scores", html_page.table(columns, everything, text_columns=(0, 1)))
    return body


def _joints(material: Material) -> str:
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
            _number(row["correct"]),
            _number(row["labelled"]),
        ]
        for row in material.rows("joints")
        if row["labelled"]
    ]
    columns = ["run", "joint", "PCKh@0.5", "within", "labelled"]
    return html_page.plots(figures) + html_page.details("The numbers", html_page.table(columns, rows, text_columns=(0, 1)))


def _errors(material: Material) -> str:
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
                    Cell(_percent(found.joint_rate), f"{_number(found.inverted)} of {_number(found.num_joints)}"),
                    Cell(_percent(found.pair_rate), f"{_number(found.swapped_pairs)} of {_number(found.num_pairs)}"),
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


def _slices(material: Material) -> str:
    figures = []
    for measure, text in (("pckh", "PCKh"), ("head_iou_50", "head boxes")):
        if f"slices_{measure}" in material.plots:
            caption = (
                "Each dot is the score of one group, its line the 95 % interval. A short line and a dot far off the others is worth a look."
            )
            figures.append((material.plots[f"slices_{measure}"], f"Scores of {text} by group", caption))
    if not figures:
        return ""
    rows = [
        [
            row["run"],
            row["by"],
            row["group"],
            Cell(f"{row['value']:.1f} %", _interval(row, "%"), share=row["value"] / 100),
            _number(row["people"]),
            f"{_number(row['count'])} {row['of']}",
        ]
        for row in material.rows("slices")
    ]
    table = html_page.table(["run", "by", "group", "score", "people", "counted over"], rows, text_columns=(0, 1, 2))
    return html_page.plots(figures) + html_page.details("The numbers", table)


def _people(material: Material) -> str:
    body = ""
    for run, cases in material.cases.items():
        if not cases:
            continue
        body += html_page.heading(run) if len(material.cases) > 1 else ""
        for kind in dict.fromkeys(case.kind for case in cases):
            shown = [case for case in cases if case.kind == kind]
            body += html_page.paragraph(KINDS[kind], "soft") + html_page.cases([_case(case) for case in shown])
    if not body:
        return ""
    hidden = (
        f"Joints outside the picture, or of a confidence below {material.min_confidence:g}, are not drawn; they still count in every score."
    )
    left_out = [result.source.name for result in material.results if result.source.name not in material.cases]
    more = f" Nobody is drawn of: {', '.join(left_out)}." if left_out else ""
    return html_page.legend(LEGEND) + html_page.paragraph(f"{hidden} {PERSON_ERROR}{more}", "note") + body


def _case(case: Case) -> str:
    lines = _said(case)
    if case.num_hidden:
        lines.append(f"{_count(case.num_hidden, 'joint')} not drawn")
    lines.append(f"row {case.place} of {case.file}")
    return html_page.case([(case.picture, case.problem or case.values["sample_id"])], _short(case.values["sample_id"]), lines, _link(case))


def _said(case: Case) -> list[str]:
    said = []
    if np.isfinite(case.person_error):
        said.append(f"error {case.person_error:.2f}")
    if case.values["pckh"] is not None:
        said.append(f"PCKh {100 * case.values['pckh']:.0f} %")
    if case.values["head_iou"] is not None:
        said.append(f"IoU {100 * case.values['head_iou']:.0f} %")
    return [", ".join(said)] if said else []


def _comparison(material: Material, number: int) -> str:
    comparison = material.comparisons[number - 1]
    first, second = comparison.names
    num_shared = comparison.errors.shape[1]
    said = [
        f"{_count(num_shared, 'labelled person', 'labelled people')} in both: {_number(comparison.num_better)} are better with {second}, "
        f"{_number(comparison.num_worse)} worse, {_number(num_shared - comparison.num_better - comparison.num_worse)} the same."
    ]
    if comparison.change is not None:
        value, low, high = comparison.change
        sure = "" if low <= 0 <= high else ", which is more than chance"
        label = scores.LABELS[comparison.measure]
        said.append(
            f"{label}: {value:+.2f} percent points, 95 % interval {low:+.2f} to {high:+.2f} (the same people resampled in both){sure}."
        )
    else:
        said.append("The two runs did not score the same people, so their scores are not subtracted.")
    for name, alone in ((first, comparison.only_first), (second, comparison.only_second)):
        if alone:
            more = ", …" if len(alone) > MAX_NAMED else ""
            said.append(f"Only in {name}: {_count(len(alone), 'row')}: {', '.join(alone[:MAX_NAMED])}{more}")
    caption = f"Each dot is a person. Below the diagonal {second} is better, above it {first}."
    figure = (material.plots[f"comparison_{number}"], f"Person errors of {first} against {second}", caption)
    body = html_page.heading(f"{second} against {first}") + html_page.items(said) + html_page.plots([figure])
    for title, pairs in ((f"Most improved by {second}", comparison.better), (f"Most worsened by {second}", comparison.worse)):
        if pairs:
            rows = [[_change(one, other)[0], *_change(one, other)[1:]] for one, other in pairs]
            body += html_page.paragraph(f"{title} (left: {first}, right: {second})", "soft")
            if any(case.picture for pair in pairs for case in pair):
                body += html_page.cases([_pair(one, other) for one, other in pairs])
            body += html_page.details("The rows", html_page.table(["person", "before", "after", "row before", "row after"], rows))
    return body


def _change(one: Case, other: Case) -> list[str]:
    places = [f"{case.place} of {case.file}" for case in (one, other)]
    return [one.values["sample_id"], f"{one.person_error:.3f}", f"{other.person_error:.3f}", *places]


def _pair(one: Case, other: Case) -> str:
    pictures = [(case.picture, case.problem or case.values["sample_id"]) for case in (one, other)]
    return html_page.case(
        pictures, _short(one.values["sample_id"]), [f"error {one.person_error:.2f} → {other.person_error:.2f}"], _link(one)
    )


def _training(material: Material) -> str:
    body = ""
    for run in material.runs:
        result, config = run.result, run.config
        said = (
            f"{config['task']}, {config['model']} with a {config['regression_head']} head, {_count(config['epochs'], 'epoch')} of batches of "
            f"{config['batch_size']}, learning rate {config['learning_rate']:g} ({config['schedule']}); "
            f"{_number(result['samples']['rows']['train'])} train and {_number(result['samples']['rows']['val'])} validation people, "
            f"{result['samples']['framing']} framing, {result['samples']['size']} px. The best epoch is the {result['best_epoch']}."
        )
        caption = (
            "Dashed: the train people; solid: validation. Where the first still falls and the second rises, the model learns by heart."
        )
        last = run.history[-1]
        train_people = last.get("train_num_people")
        of = f" Train: {_count(train_people, 'person', 'people')}, evenly spread, not augmented." if train_people else ""
        body += html_page.heading(run.name) + html_page.paragraph(said)
        body += html_page.plots(
            [
                (material.plots[f"loss_{run.name}"], f"Loss of {run.name} over the epochs", caption),
                (
                    material.plots[f"score_{run.name}"],
                    f"Scores of {run.name} over the epochs",
                    f"Validation: {_count(last['val_num_people'], 'person', 'people')}.{of}",
                ),
            ]
        )
        films = material.films.get(run.name, ())
        if films:
            body += html_page.paragraph("The same validation people as the training went on; white is the label.", "soft")
            for film in films:
                frames = [(frame, f"epoch {epoch}") for frame, epoch in zip(film.frames, film.epochs, strict=True)]
                body += html_page.paragraph(film.sample_id, "soft") + html_page.film(frames)
    return body


def _inputs(material: Material) -> str:
    rows: list[list[Cell | str]] = [
        [result.source.name, status, _number(count), _share(count, result.source.num_rows)]
        for result in material.results
        for status, count in sorted(result.statuses.items(), key=lambda item: (item[0] != "ok", -item[1]))
    ]
    if not rows:
        return ""
    body = html_page.table(["run", "status", "rows", "share"], rows, text_columns=(0, 1))
    examples = [
        [result.source.name, item["status"], item["sample_id"], item["detail"] or "", _place(result, item["row"])]
        for result in material.results
        for item in result.examples
    ]
    if examples:
        body += html_page.heading("Examples of what was not predicted")
        body += html_page.table(["run", "status", "input", "what was found", "row"], examples, text_columns=(0, 1, 2, 3))
    figures = []
    for name, caption in (
        ("joint_confidence", "Share of all predicted joints by the confidence that the model gives them."),
        ("head_confidence", "Share of the predicted head boxes by the confidence that the model gives them."),
    ):
        if name in material.plots:
            figures.append((material.plots[name], f"Histogram of the {name.replace('_', ' ')}", caption))
    return body + (html_page.plots(figures) if figures else "")


def _conventions(material: Material) -> str:
    texts = [
        "Official PCKh@0.5: a joint is found where its distance to the label is at most half of 0.6 x the diagonal of the labelled head box. "
        "All labelled joints count, occluded ones too; pelvis and thorax do not; the 14 others are pooled over all people.",
        "The paper's PCKh@0.5: the same with the distance from head top to upper neck in place of the head size, over all 16 joints.",
        "A predicted joint or head box that is not a number is a miss, never left out. Rows that were not predicted for want of a picture "
        "carry no label and are counted under Inputs.",
        "Intervals hold the middle 95 % of 1,000 resamples of the people (Poisson bootstrap). People of one video are alike, so the true "
        "uncertainty is larger.",
        "Person framing takes the place and size of the person from the label, as all published MPII numbers do; image framing does not. "
        "Compare runs of one framing.",
        "The 220 frame is the whole picture squeezed to 220 x 220 px, as the paper's; mean squared errors are per number (a joint is two).",
    ]
    return html_page.items(texts) if material.results else ""


def _origin(material: Material) -> str:
    rows = []
    for result in material.results:
        summary = result.source.summary
        rows.append([result.source.name, result.source.uri, str(summary.get("model_id") or "–")[:16], str(summary.get("run_id") or "–")])
    for run in material.runs:
        rows.append([run.name, run.uri, str(run.result["model_id"])[:16], "training run"])
    body = html_page.table(["run", "place", "model", "scoring run"], rows, text_columns=(0, 1))
    body += html_page.preformatted(" ".join(map(_quoted, material.provenance["command"])))
    rest = {name: value for name, value in material.provenance.items() if name != "command"}
    body += html_page.details("Versions and settings", html_page.preformatted(json.dumps(rest, indent=1, sort_keys=True)))
    files = [f"tables/{name}.parquet and .csv: {_number(table.num_rows)} rows" for name, table in material.tables.items()]
    files += [f"plots/{file_name(name)}.png" for name in material.plots]
    return body + html_page.details("Files beside this page", html_page.items(files))


def file_name(name: str) -> str:
    """A name that every storage takes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)


def _quoted(argument: str) -> str:
    return argument if re.fullmatch(r"[\w@%+=:,./-]+", argument) else "'" + argument.replace("'", "'\"'\"'") + "'"


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


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _share(count: int, total: int) -> Cell:
    return Cell(_percent(count / total), share=count / total)


def _number(value: int) -> str:
    return f"{value:,}"


def _count(value: int, one: str, many: str = "") -> str:
    return f"{_number(value)} {one if value == 1 else many or one + 's'}"


def _short(sample_id: str) -> str:
    return sample_id.rpartition("/")[2]


def _place(result: Result, row: int) -> str:
    file, place = result.source.locate(row)
    return f"{place} of {file}"


def _link(case: Case) -> str:
    """Only where a browser can follow it, and to nothing but a file or a page."""
    uri = case.values["uri"] or ""
    if uri.startswith("/"):
        return "file://" + urllib.parse.quote(uri)
    return uri if uri.startswith(("https://", "http://", "file://")) else ""
