"""What the page of a report says: its sections, from tables, plots and drawn people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from posepipe import html_page, report_people, report_scores, storage
from posepipe.html_page import Cell, count, number, share_cell
from posepipe.material import Material
from posepipe.predictions import list_averaged
from posepipe.results import Result


def render(material: Material) -> str:
    """The HTML."""
    names = [result.source.name for result in material.results]
    num_rows = sum(result.source.num_rows for result in material.results)
    parts = [f"{count(num_rows, 'row')} of {count(len(names), 'run')} of predictions"] if names else []
    parts += [f"{count(len(material.runs), 'training run')}"] if material.runs else []
    sections = [
        ("glance", "At a glance", report_scores.glance(material)),
        ("joints", "Joints", report_scores.joints(material)),
        ("errors", "Errors", report_scores.errors(material)),
        ("groups", "Groups of people", report_scores.slices(material)),
        ("people", "People to look at", report_people.people_to_look_at(material)),
        ("comparison", "Person by person", report_people.comparisons(material)),
        ("training", "Training", report_people.training(material)),
        ("inputs", "Inputs", _inputs(material)),
        ("conventions", "Conventions", _conventions(material)),
        ("origin", "Where this comes from", _origin(material)),
    ]
    return html_page.page(material.title, ", ".join(parts), [section for section in sections if section[2]])


def _inputs(material: Material) -> str:
    rows: list[list[Cell | str]] = [
        [result.source.name, status, number(count), share_cell(count, result.source.num_rows)]
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
        "Official PCKh@0.5: a joint is found where its distance to the label is at most half of 0.6 x the diagonal of the labelled head "
        "box. All labelled joints count, occluded ones too; pelvis and thorax do not; the 14 others are pooled over all people.",
        "The paper's PCKh@0.5: the same with the distance from head top to upper neck in place of the head size, over all 16 joints.",
        "A predicted joint or head box that is not a number is a miss, never left out. "
        + (
            "So is a person of the truth whose row was not predicted."
            if material.provenance["truth"]
            else "Rows that were not predicted for want of a picture carry no label and are counted under Inputs."
        ),
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
        rows.append(
            [
                result.source.name,
                result.source.uri,
                ", ".join(f"{task} {model[:16]}" for task, ids in summary.get("models", {}).items() for model in ids.split(",")) or "–",
                "; ".join(list_averaged(summary)) or "–",
                str(summary.get("run_id") or "–"),
            ]
        )
    for run in material.runs:
        rows.append([run.name, run.uri, str(run.result["model_id"])[:16], "–", "training run"])
    body = html_page.table(["run", "place", "model", "averaged over", "scoring run"], rows, text_columns=(0, 1))
    body += html_page.preformatted(" ".join(map(_quoted, material.provenance["command"])))
    rest = {name: value for name, value in material.provenance.items() if name != "command"}
    body += html_page.details("Versions and settings", html_page.preformatted(json.dumps(rest, indent=1, sort_keys=True)))
    files = [f"tables/{name}.parquet and .csv: {number(table.num_rows)} rows" for name, table in material.tables.items()]
    files += [f"plots/{name}.png" for name in file_names(material.plots).values()]
    return body + html_page.details("Files beside this page", html_page.items(files))


def file_names(names: Iterable[str]) -> dict[str, str]:
    """For each a name that every storage takes; different ones stay different."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
        found[name] = f"{plain}-{storage.sha256(name.encode())[:6]}" if plain in found.values() else plain
    return found


def _quoted(argument: str) -> str:
    return argument if re.fullmatch(r"[\w@%+=:,./-]+", argument) else "'" + argument.replace("'", "'\"'\"'") + "'"


def _place(result: Result, row: int) -> str:
    file, place = result.source.locate(row)
    return f"{file}, row {place}"
