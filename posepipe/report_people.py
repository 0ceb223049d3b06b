"""The sections of a report that show people: cases, comparisons, training runs with their films."""

from __future__ import annotations

import urllib.parse

import numpy as np

from posepipe import html_page, overlays, scores
from posepipe.cases import Case
from posepipe.comparing import Comparison
from posepipe.html_page import count, number
from posepipe.material import Material
from posepipe.runs import num_train

MAX_NAMED = 10
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


def people_to_look_at(material: Material) -> str:
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
        lines.append(f"{count(case.num_hidden, 'joint')} not drawn")
    if case.problem and case.picture:
        lines.append(f"drawn on grey: {case.problem}")
    lines.append(f"{case.file}, row {case.place}")
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


def comparisons(material: Material) -> str:
    return "".join(
        _comparison(comparison, material.plots[f"comparison_{place}"]) for place, comparison in enumerate(material.comparisons, 1)
    )


def _comparison(comparison: Comparison, plot: bytes) -> str:
    first, second = comparison.names
    num_shared = comparison.errors.shape[1]
    said = [
        f"{count(num_shared, 'labelled person', 'labelled people')} in both: {number(comparison.num_better)} are better with {second}, "
        f"{number(comparison.num_worse)} worse, {number(num_shared - comparison.num_better - comparison.num_worse)} the same. "
        f"Their mean person error goes from {comparison.errors[0].mean():.3f} to {comparison.errors[1].mean():.3f}."
    ]
    if comparison.change is not None:
        value, low, high = comparison.change
        sure = ", which leaves out 0" if low > 0 or high < 0 else ""
        # One person has no interval.
        interval = f", 95 % interval {low:+.2f} to {high:+.2f} (the same people resampled in both){sure}" if low <= high else ""
        said.append(f"{scores.LABELS[comparison.measure]}: {value:+.2f} percent points{interval}.")
    else:
        said.append("The two runs did not score the same people, so their scores are not subtracted.")
    for name, alone in ((first, comparison.only_first), (second, comparison.only_second)):
        if alone:
            more = ", …" if len(alone) > MAX_NAMED else ""
            said.append(f"Only in {name}: {count(len(alone), 'row')}: {', '.join(alone[:MAX_NAMED])}{more}")
    caption = f"Each dot is a person. Below the diagonal {second} is better, above it {first}."
    figure = (plot, f"Person errors of {first} against {second}", caption)
    body = html_page.heading(f"{second} against {first}") + html_page.items(said) + html_page.plots([figure])
    for title, pairs in ((f"Most improved by {second}", comparison.better), (f"Most worsened by {second}", comparison.worse)):
        if pairs:
            rows = [[_change(one, other)[0], *_change(one, other)[1:]] for one, other in pairs]
            body += html_page.paragraph(f"{title} (left: {first}, right: {second})", "soft")
            if any(case.picture for pair in pairs for case in pair):
                body += html_page.cases([_pair(one, other) for one, other in pairs], are_pairs=True)
            body += html_page.details("The rows", html_page.table(["person", "before", "after", "row before", "row after"], rows))
    return body


def _change(one: Case, other: Case) -> list[str]:
    places = [f"{case.file}, row {case.place}" for case in (one, other)]
    return [one.values["sample_id"], f"{one.person_error:.3f}", f"{other.person_error:.3f}", *places]


def _pair(one: Case, other: Case) -> str:
    pictures = [(case.picture, case.problem or case.values["sample_id"]) for case in (one, other)]
    return html_page.case(
        pictures, _short(one.values["sample_id"]), [f"error {one.person_error:.2f} → {other.person_error:.2f}"], _link(one)
    )


def training(material: Material) -> str:
    body = ""
    for run in material.runs:
        result, config = run.result, run.config
        size = result["samples"]["size"]
        width, height = (size, size) if isinstance(size, int) else size  # runs of older versions are of squares
        epochs = count(len(run.history), "epoch") + (f" of {config['epochs']}" if len(run.history) != config["epochs"] else "")
        said = (
            f"{config['task']}, {config['model']} with a {config['regression_head']} head, {epochs}, batches of "
            f"{config['batch_size']}, learning rate {config['learning_rate']:g} ({config['schedule']}); "
            f"{number(num_train(result))} train and {number(result['samples']['rows']['val'])} validation people, "
            f"{result['samples']['framing']} framing, {width} x {height} px. Epoch {result['best_epoch']} is the best."
        )
        caption = (
            "Dashed: the train people; solid: validation. Where the first still falls and the second rises, the model learns by heart."
        )
        last = run.history[-1]
        train_people = last.get("train_num_people")
        of = f" Train: {count(train_people, 'person', 'people')}, evenly spread, not augmented." if train_people else ""
        body += html_page.heading(run.name) + html_page.paragraph(said)
        body += html_page.plots(
            [
                (material.plots[f"loss_{run.name}"], f"Loss of {run.name} over the epochs", caption),
                (
                    material.plots[f"score_{run.name}"],
                    f"Scores of {run.name} over the epochs",
                    f"Validation: {count(last['val_num_people'], 'person', 'people')}.{of}",
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


def _short(sample_id: str) -> str:
    return sample_id.rpartition("/")[2]


def _link(case: Case) -> str:
    """Only where a browser can follow it, and to nothing but a file or a page."""
    uri = case.values["uri"] or ""
    if uri.startswith("/"):
        return "file://" + urllib.parse.quote(uri)
    return uri if uri.startswith(("https://", "http://", "file://")) else ""
