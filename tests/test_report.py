"""report.py and what it is made of: published figures through the job, tables, cases, comparisons, pages of every kind of input."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from benchmarks.report import draw_pictures, draw_rows, write_predictions
from jobs import report as job
from posepipe import cases, html_page, plots, report, report_page, snapshots, storage
from posepipe.config import ReportConfig
from posepipe.predictions import PREDICTION
from posepipe.runs import CONFIG_FILE, HISTORY_FILE, RESULT_FILE
from posepipe.skeleton import PCKH_GROUPS

FLOORS = {"pose": {"floor": {"pckh": 0.166, "pckh_bone": 0.309}}, "head": {"floor": {"head_iou": 0.2}}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_pictures(str(tmp_path_factory.mktemp("mpii")), 3)


def write_run(uri, pictures, count=30, error=0.4, seed=0, change=None, **summary):
    """A run of drawn people; `change` edits the rows, each a dict."""
    table = draw_rows(np.arange(count), error, pictures, seed)
    if change:
        rows = table.to_pylist()
        for row in rows:
            change(row)
        table = pa.Table.from_pylist(rows, PREDICTION)
    write_predictions(
        str(uri), [table.slice(start, 20) for start in range(0, count, 20)], {"tasks": FLOORS, "framing": "person", **summary}
    )
    return str(uri)


def unlabel(row):
    labels = ("true_joints", "true_head_box", "joint_error", "pckh", "pckh_bone", "head_iou", "head_size", "head_bone", "is_visible")
    row |= dict.fromkeys(labels)


def build(tmp_path, *uris, **options):
    outcome = report.build(ReportConfig(report_uri=str(tmp_path / "report"), predictions_uri=tuple(uris), **options))
    return Path(outcome["page_uri"]).read_text(), outcome


def table(tmp_path, name):
    return storage.read_table(str(tmp_path / "report" / "tables" / f"{name}.parquet")).to_pylist()


def text_of(page):
    return unescape(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<style>.*?</style>|data:[^\"]*", "", page)))


# Published figures, through the job


@pytest.fixture(scope="module")
def published(shared_data, tmp_path_factory):
    folder = shared_data / "pckh-vectors"
    if not folder.is_dir():
        pytest.skip(f"real data is absent: no folder {folder}")
    uri = tmp_path_factory.mktemp("published")
    flags = ["--predictions-uri", f"{folder}/predictions.npz", "--truth-uri", f"{folder}/ground_truth.npz", "--first-pixel", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report", "--report-uri", str(uri / "report"), *flags])
        job.main()
    return uri, json.loads((folder / "expected.json").read_text())


def figures(uri, run):
    """The figures of expected.json from the tables of a report."""
    names = {
        "pooled14": "pckh",
        "unweighted14": "pckh_joint_mean",
        "pooled16": "pckh_pooled_16",
        "pooled14_at_0.10": "pckh_at_0.1",
        "auc14": "auc",
        "toolkit_head": "pckh_toolkit_head",
        "toolkit_ubody": "pckh_toolkit_upper_body",
        "bone_normalised14": "pckh_bone_14",
        **{group: f"pckh_{group}" for group in PCKH_GROUPS},
    }
    values = {row["measure"]: row["value"] for row in table(uri, "scores") if row["run"] == run}
    found = {name: round(values[measure], 6) for name, measure in names.items()}
    curve = {row["threshold"]: row["pckh"] for row in table(uri, "curve") if row["run"] == run}
    return found | {"pooled14_at_0.11": round(curve[0.11], 6)}


@pytest.mark.parametrize("run", ["bearpaw_s1", "bearpaw_s2", "bearpaw_s8", "newell", "valid_ours", "valid_example", "tompson"])
def test_the_tables_hold_the_published_figures_to_the_last_digit(published, run):
    uri, expected = published
    wanted = {name: value for name, value in expected["predictions"][run].items() if value is not None}
    found = figures(uri, run)
    assert {name: found[name] for name in wanted} == wanted


def test_the_mean_pose_of_the_published_people_is_the_floor_of_every_run(published):
    uri, expected = published
    wanted = expected["floors"]["mean_pose"]
    found = figures(uri, "mean pose")
    assert {name: found[name] for name in wanted} == wanted
    floors = {row["run"]: row["floor"] for row in table(uri, "scores") if row["measure"] == "pckh"}
    assert round(floors.pop("newell"), 6) == wanted["pooled14"]
    assert np.isnan(floors["mean pose"])


# Scores and tables


def test_the_headline_stands_beside_the_floor_and_the_papers_figures(tmp_path, pictures):
    page, outcome = build(tmp_path, write_run(tmp_path / "mine", pictures))
    score = next(row for row in outcome["scores"] if row["measure"] == "pckh")
    text = text_of(page)
    for expected in (f"{score['value']:.1f} %", f"{score['low']:.1f} – {score['high']:.1f}", "16.6 %", "30.9 %", "20.0 %", "30 %", "50 %"):
        assert expected in text
    assert "person framing from the label" in text
    assert f"mine: PCKh@0.5, official: {score['value']:.2f} % ({score['low']:.2f} to {score['high']:.2f})" in report.describe(outcome)


def test_tables_are_the_same_as_parquet_and_as_csv(tmp_path, pictures):
    build(tmp_path, write_run(tmp_path / "a", pictures), write_run(tmp_path / "b", pictures, seed=1))
    folder = tmp_path / "report" / "tables"
    names = {path.stem for path in folder.glob("*.parquet")}
    assert names == {"scores", "joints", "curve", "slices", "histograms", "statuses", "cases", "comparison_1"}
    for name in names:
        assert pyarrow.csv.read_csv(folder / f"{name}.csv").num_rows == len(table(tmp_path, name)) > 0
    assert {row["run"] for row in table(tmp_path, "slices")} == {"a", "b"}
    assert sum(row["count"] for row in table(tmp_path, "histograms") if row["run"] == "a" and row["what"] == "IoU of the head box") == 30


def test_every_plot_is_a_png_beside_the_page(tmp_path, pictures):
    page, _ = build(tmp_path, write_run(tmp_path / "a", pictures), write_run(tmp_path / "b", pictures, seed=1))
    names = {path.stem for path in (tmp_path / "report" / "plots").glob("*.png")}
    assert names == {
        "joints",
        "curve",
        "errors",
        "iou",
        "slices_pckh",
        "slices_head_iou_50",
        "joint_confidence",
        "head_confidence",
        "comparison_1",
    }
    assert page.count("data:image/png;base64,") == len(names)


# People to look at


def test_cases_name_the_row_that_they_are(tmp_path, pictures):
    uri = write_run(tmp_path / "mine", pictures)
    page, _ = build(tmp_path, uri, num_cases=4)
    cases = table(tmp_path, "cases")
    assert [case["kind"] for case in cases] == ["best"] * 4 + ["median"] * 4 + ["worst"] * 4
    for case in cases:
        row = storage.read_table(storage.join_uri(uri, case["file"])).slice(case["row_in_file"], 1).to_pylist()[0]
        assert (row["sample_id"], row["uri"], row["pckh"]) == (case["sample_id"], case["picture_uri"], case["pckh"])
        assert f"{case['file']}, row {case['row_in_file']}" in text_of(page)
    errors = [case["person_error"] for case in cases]
    assert errors[:8] == sorted(errors[:8])
    assert errors[8:] == sorted(errors[8:], reverse=True)
    assert errors[7] <= errors[11]
    assert page.count("data:image/jpeg;base64,") == 12


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_a_few_people_are_a_report(tmp_path, pictures, count):
    page, _ = build(tmp_path, write_run(tmp_path / "mine", pictures, count))
    cases = table(tmp_path, "cases")
    assert len({case["row"] for case in cases}) == len(cases) == min(count, 12 if count == 10 else count)
    assert f"{count} row" in text_of(page)


def test_pictures_that_cannot_be_read_are_said_and_drawn_on_grey(tmp_path, pictures):
    def lose(row):
        row["uri"] = {0: "/nowhere/x.jpg", 1: str(tmp_path / "bad.jpg"), 2: "nosuchscheme://x"}[int(row["sample_id"][:8]) % 3]

    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    page, _ = build(tmp_path, write_run(tmp_path / "mine", pictures, 9, change=lose))
    text = text_of(page)
    assert "drawn on grey: the picture cannot be read (FileNotFoundError)" in text
    assert "the picture cannot be drawn (corrupt)" in text
    assert "the picture cannot be drawn (ValueError)" in text


def test_joints_of_low_confidence_are_not_drawn_but_counted(tmp_path, pictures):
    def doubt(row):
        row["joint_confidence"] = [0.1] * 5 + [0.9] * 11

    uri = write_run(tmp_path / "mine", pictures, 3, error=0.01, change=doubt)
    page, outcome = build(tmp_path, uri)
    other_page, same = build(tmp_path, uri, min_confidence=0)
    hidden, otherwise = (sum(map(int, re.findall(r"(\d+) joints? not drawn", text_of(each)))) for each in (page, other_page))
    assert hidden == otherwise + 15
    assert [row["value"] for row in outcome["scores"]] == [row["value"] for row in same["scores"]]


# Comparison


def test_the_page_says_of_each_run_what_was_averaged(tmp_path, pictures):
    ids = ["a" * 64, "b" * 64, "c" * 64]
    averaged = {"models": {"head": ids[0], "pose": ",".join(ids[1:])}, "flip_test": True, "test_scales": [0.9, 1.0]}
    runs = [write_run(tmp_path / "run", pictures, **averaged), write_run(tmp_path / "plain", pictures)]
    text = " ".join(text_of(build(tmp_path, *runs)[0]).split())
    assert f"head {'a' * 16}, pose {'b' * 16}, pose {'c' * 16}" in text
    assert text.count("2 pose models; the mirrored crop; crops scaled by 0.9, 1") == 1


def test_two_runs_are_compared_person_by_person(tmp_path, pictures):
    first, second = write_run(tmp_path / "first", pictures, error=0.8), write_run(tmp_path / "second", pictures, error=0.2, seed=1)
    page, outcome = build(tmp_path, first, second)
    rows = table(tmp_path, "comparison_1")
    assert len(rows) == 30
    for row in rows:
        assert row["change"] == pytest.approx(row["second_error"] - row["first_error"], abs=1e-6)
    num_better = sum(row["change"] < 0 for row in rows)
    one, other = (row["value"] for row in outcome["scores"] if row["measure"] == "pckh")
    text = text_of(page)
    assert num_better > 25
    assert f"30 labelled people in both: {num_better} are better with second, {30 - num_better} worse, 0 the same" in text
    found = re.search(r"official: (\+[\d.]+) percent points, 95 % interval (\+[\d.]+) to (\+[\d.]+) .*, which leaves out 0", text)
    value, low, high = map(float, found.groups())
    assert value == pytest.approx(other - one, abs=0.006)
    assert low < value < high
    best = min(rows, key=lambda row: row["change"])
    assert best["sample_id"] in text


def test_people_that_only_one_run_has_are_named_and_scores_are_not_subtracted(tmp_path, pictures):
    first, second = write_run(tmp_path / "first", pictures, 12), write_run(tmp_path / "second", pictures, 10, seed=1)
    page, _ = build(tmp_path, first, second)
    text = text_of(page)
    assert "10 labelled people in both" in text
    assert "Only in first: 2 rows: 00000010.jpg#0, 00000011.jpg#0" in text
    assert "did not score the same people" in text
    assert "Only in second" not in text


def test_a_run_of_poses_and_one_of_head_boxes_are_not_compared(tmp_path, pictures):
    def only(task):
        def change(row):
            row["task"] = task
            row |= dict.fromkeys(("joints", "joint_error", "pckh", "pckh_bone") if task == "head" else ("head_box", "head_iou"))

        return change

    uris = [write_run(tmp_path / task, pictures, change=only(task)) for task in ("pose", "head")]
    page, outcome = build(tmp_path, *uris)
    assert "Person by person" not in page
    assert {(row["run"], row["measure"]) for row in outcome["scores"]} >= {("pose", "pckh"), ("head", "head_iou")}
    assert not {row["measure"] for row in outcome["scores"] if row["run"] == "head"} & {"pckh", "mse_220_joints"}


# Without labels, and worse


def test_predictions_without_labels_are_a_report(tmp_path, pictures):
    def change(row):
        unlabel(row)
        if row["sample_id"] > "00000025":
            row |= {"status": "truncated", "detail": "<half> of it", "joints": None, "head_box": None, "joint_confidence": None}

    page, outcome = build(tmp_path, write_run(tmp_path / "bucket", pictures, change=change))
    text = text_of(page)
    assert outcome["scores"] == []
    for expected in ("truncated", "<half> of it", "83.3 %", "Some predictions, evenly spread", "part-000001.parquet, row 6"):
        assert expected in text
    assert "Groups of people" not in text
    assert "PCKh@0.5, official %" not in text
    assert page.count("data:image/jpeg;base64,") == 12
    assert (tmp_path / "report" / "plots" / "joint_confidence.png").exists()


def test_a_run_of_which_nothing_was_predicted_is_a_report(tmp_path, pictures):
    def fail(row):
        unlabel(row)
        row |= {"status": "missing", "detail": "gone", "joints": None, "head_box": None, "joint_confidence": None}

    page, _ = build(tmp_path, write_run(tmp_path / "bucket", pictures, change=fail))
    assert "missing" in text_of(page)
    assert not (tmp_path / "report" / "tables" / "cases.csv").exists()


def test_a_folder_of_predictions_is_no_place_for_a_report(tmp_path, pictures):
    uri = write_run(tmp_path / "bucket", pictures)
    before = sorted(path for path in (tmp_path / "bucket").rglob("*"))
    with pytest.raises(ValueError, match="bucket holds samples or predictions; choose another --report-uri"):
        report.build(ReportConfig(report_uri=uri, predictions_uri=(uri,)))
    assert sorted(path for path in (tmp_path / "bucket").rglob("*")) == before


@pytest.mark.parametrize("names", [("実験", "比較"), ("a b", "a_b")])
def test_plots_of_different_names_are_different_files(names):
    files = report_page.file_names(names)
    assert (list(files), len(set(files.values()))) == (list(names), 2)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", file) for file in files.values())


def test_nobody_is_an_error(tmp_path):
    write_predictions(str(tmp_path / "none"), [])
    with pytest.raises(ValueError, match="holds no people: expected at least one row of predictions, got 0"):
        build(tmp_path, str(tmp_path / "none"))
    assert not (tmp_path / "report").exists()


def test_names_are_text_and_never_markup(tmp_path, pictures):
    bad = "<img src=x onerror=alert(1)>&\"'$x_1$"

    def change(row):
        row |= {"sample_id": f"{bad}{row['sample_id']}", "uri": f"javascript:alert('{bad}')", "activity": bad, "detail": bad}

    page, _ = build(tmp_path, write_run(tmp_path / "a$b <i>", pictures, change=change), title=bad)
    assert "<img src=x" not in page
    assert not re.search(r'href="(?!#|data:,)', page)
    assert bad in text_of(page)


def test_links_go_to_files_and_pages_alone(tmp_path, pictures):
    page, _ = build(tmp_path, write_run(tmp_path / "mine", pictures))
    links = set(re.findall(r'href="([^"]*)"', page)) - {"data:,"}
    assert {link for link in links if not link.startswith("#")} == {f"file://{uri}" for uri in pictures}


def test_the_page_fetches_nothing(tmp_path, pictures):
    page, _ = build(tmp_path, write_run(tmp_path / "mine", pictures))
    assert "<script" not in page
    assert set(re.findall(r'src="(data:image/(?:png|jpeg);base64,|.{20})', page)) <= {"data:image/png;base64,", "data:image/jpeg;base64,"}
    assert "@import" not in page
    assert "url(" not in page


def test_the_page_stays_small_whatever_the_number_of_people(tmp_path, pictures):
    sizes = []
    for name, count in (("few", 200), ("many", 3000)):
        uris = [write_run(tmp_path / f"{name}{run}", pictures, count, seed=run) for run in range(3)]
        sizes.append(build(tmp_path, *uris)[1]["page_bytes"])
    assert sizes[1] < 1.2 * sizes[0]
    assert sizes[1] < 20 * 2**20


def test_a_new_report_takes_the_place_of_the_old_one_and_of_nothing_else(tmp_path, pictures):
    first, second = write_run(tmp_path / "first", pictures), write_run(tmp_path / "second", pictures, seed=1)
    build(tmp_path, first, second)
    (tmp_path / "report" / "plots" / "mine.png").write_bytes(b"mine")
    assert (tmp_path / "report" / "plots" / "comparison_1.png").exists()
    build(tmp_path, first)
    found = {str(path.relative_to(tmp_path / "report")) for path in (tmp_path / "report").rglob("*") if path.is_file()}
    listed = set(storage.read_json(str(tmp_path / "report" / storage.MANIFEST))["files"])
    assert found == listed | {storage.MANIFEST, "plots/mine.png"}
    assert "plots/comparison_1.png" not in listed


def test_predictions_and_their_report_may_lie_in_a_bucket(s3_endpoint, pictures):
    filesystem, _ = storage.open_filesystem("s3://reports")
    filesystem.mkdir("reports")
    for seed, name in enumerate(("one", "two")):
        write_run(f"s3://reports/{name}", pictures, seed=seed)
    config = ReportConfig(report_uri="s3://reports/report", predictions_uri=("s3://reports/one", "s3://reports/two"))
    for _ in range(2):  # the second one takes the place of the first
        outcome = report.build(config)
    assert outcome["page_uri"] == "s3://reports/report/index.html"
    listed = storage.read_json("s3://reports/report/_MANIFEST.json")["files"]
    assert {f"s3://reports/report/{name}" for name in listed} < set(storage.list_files("s3://reports/report"))
    assert b"Person by person" in storage.read_bytes(outcome["page_uri"])


# Training runs


def write_training(uri, task="pose", with_snapshots=True):
    metric = {"pose": "pckh", "head": "head_iou"}[task]
    history = [
        {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 2 / epoch, f"train_{metric}": 0.1 * epoch, f"val_{metric}": 0.05 * epoch}
        | {"train_num_people": 9, "val_num_people": 7, "val_pckh_bone": 0.06 * epoch, "val_head_iou_50": None}
        for epoch in (1, 2, 3)
    ]
    config = {"task": task, "model": "resnet10t", "regression_head": "heatmap", "epochs": 3, "batch_size": 8, "learning_rate": 1e-3}
    # Runs of older versions have a single side there.
    samples = {"rows": {"train": 90, "val": 7}, "framing": "person", "size": [48, 64] if task == "pose" else 64}
    storage.write_json(storage.join_uri(uri, CONFIG_FILE), config | {"schedule": "cosine"})
    storage.write_json(storage.join_uri(uri, HISTORY_FILE), history)
    storage.write_json(storage.join_uri(uri, RESULT_FILE), {"best_epoch": 3, "floor": {metric: 0.2}, "samples": samples, "model_id": "abc"})
    if with_snapshots:
        from posepipe import images

        truth = np.random.default_rng(0).uniform(0, 63, (2, 16 if task == "pose" else 2, 2))
        truth[0, 0] = np.nan
        kept = snapshots.start(["a.jpg#0", "b.jpg#1"], [images.encode_jpeg(np.full((64, 64, 3), 90, np.uint8))] * 2, truth)
        for epoch in (1, 3):
            kept = snapshots.extend(kept, epoch, np.nan_to_num(truth) + epoch)
        storage.write_table(storage.join_uri(uri, snapshots.SNAPSHOTS_FILE), kept)
    storage.write_bytes(storage.join_uri(uri, storage.SUCCESS), b"")
    return str(uri)


@pytest.mark.parametrize("task", ["pose", "head"])
def test_a_training_run_has_its_curves_and_its_films(tmp_path, task):
    run = write_training(str(tmp_path / "runs" / task), task)
    page, outcome = build(tmp_path, runs_uri=(run,))
    text = text_of(page)
    assert outcome["num_rows"] == 0
    assert {path.stem for path in (tmp_path / "report" / "plots").glob("*.png")} == {f"loss_{task}", f"score_{task}"}
    for expected in (
        "1 training run",
        f"person framing, {48 if task == 'pose' else 64} x 64 px. Epoch 3 is the best",
        "Validation: 7 people",
        "Train: 9 people",
        "a.jpg#0",
        "epoch 1",
        "epoch 3",
    ):
        assert expected in text
    assert "epoch 2" not in text
    assert page.count("data:image/jpeg;base64,") == 4


@pytest.mark.parametrize("size", [(48, 96), (96, 48)])
def test_a_film_keeps_the_aspect_of_its_crops_and_the_place_of_its_joints(size):
    from posepipe import images

    points = np.full((1, 16, 2), np.nan)
    points[0, 0] = (12, 36)
    crop = images.encode_jpeg(np.full((size[1], size[0], 3), 90, np.uint8))
    (film,) = cases.draw_films(snapshots.extend(snapshots.start(["a#0"], [crop], np.full((1, 16, 2), np.nan)), 1, points))
    frame = images.decode_jpeg(film.frames[0]).astype(int)
    scale = cases.FILM_SIDE / 96
    assert frame.shape == (size[1] * scale, size[0] * scale, 3)
    y, x = np.nonzero(np.abs(frame - 90).max(axis=2) > 60)
    np.testing.assert_allclose([x.mean(), y.mean()], [12.5 * scale, 36.5 * scale], atol=1)


def test_training_runs_of_one_name_are_told_apart(tmp_path):
    runs = tuple(write_training(str(tmp_path / parent / "pose"), with_snapshots=False) for parent in ("one", "two"))
    build(tmp_path, runs_uri=runs)
    names = {path.stem for path in (tmp_path / "report" / "plots").glob("*.png")}
    assert names == {"loss_one_pose", "score_one_pose", "loss_two_pose", "score_two_pose"}


def test_an_unfinished_training_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no finished run at .*: expected history.json and _SUCCESS"):
        build(tmp_path, runs_uri=(str(tmp_path),))


# The command line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_pixel": 1}, "--first-pixel is for array files, and there is none"),
        ({"images_uri": "x"}, "--images-uri is for an array file in --truth-uri"),
        ({"split": "train"}, "--split is for samples in --truth-uri"),
        ({"split": "train", "truth_uri": "x.npz", "first_pixel": 1}, "--split is for samples in --truth-uri"),
    ],
)
def test_flags_without_effect_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, "somewhere", **options)


def test_a_truth_without_predictions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--truth-uri is for --predictions-uri"):
        build(tmp_path, runs_uri=("x",), truth_uri="y")


def test_a_report_of_nothing_is_refused():
    with pytest.raises(ValueError, match="give --predictions-uri, --runs-uri or both"):
        ReportConfig(report_uri="x")
    with pytest.raises(ValueError, match="--predictions-uri names one place twice: a a"):
        ReportConfig(report_uri="x", predictions_uri=("a", "a"))
    with pytest.raises(ValueError, match="--runs-uri names one place twice: a a/"):
        ReportConfig(report_uri="x", runs_uri=("a", "a/"))


def test_the_job_says_the_scores_and_the_place(tmp_path, pictures, monkeypatch, capsys):
    uri = write_run(tmp_path / "mine", pictures)
    monkeypatch.setattr("sys.argv", ["report", "--report-uri", str(tmp_path / "report"), "--predictions-uri", uri])
    job.main()
    said = capsys.readouterr().out
    assert "mine: PCKh@0.5, official: " in said
    assert f"report: {tmp_path}/report/index.html" in said
    monkeypatch.setattr("sys.argv", ["report", "--report-uri", "x", "--predictions-uri", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        job.main()
    assert "error: no complete predictions at" in capsys.readouterr().err


# Parts of a page


def test_every_text_is_escaped():
    bad = '<b>&"'
    parts = [
        html_page.paragraph(bad),
        html_page.heading(bad),
        html_page.items([bad]),
        html_page.table([bad], [[html_page.Cell(bad, bad)], [bad]]),
        html_page.image(b"", "png", bad),
        html_page.case([(None, bad), (b"", bad)], bad, [bad], bad),
        html_page.film([(b"", bad)]),
        html_page.legend({bad: "ring"}),
        html_page.details(bad, ""),
        html_page.preformatted(bad),
        html_page.page(bad, bad, [("a", bad, "")]),
    ]
    for part in parts:
        assert bad not in part
        assert "&lt;b&gt;&amp;&quot;" in part


# Few people, many runs


def test_of_one_person_no_interval_is_told(tmp_path, pictures):
    page, _ = build(tmp_path, *(write_run(tmp_path / f"run{seed}", pictures, count=1, seed=seed) for seed in range(2)))
    assert "nan" not in text_of(page)
    assert "leaves out 0" not in text_of(page)


def test_the_page_says_how_to_make_it_again(tmp_path, pictures):
    write_run(tmp_path / "scored", pictures, count=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["study", "--minutes", "60"])
        page, _ = build(tmp_path, str(tmp_path / "scored"))
    command = f"python -m jobs.report --predictions-uri {tmp_path}/scored --report-uri {tmp_path}/report"
    assert sorted(command.split()) == sorted(re.search(r"python -m jobs\.report[^<]*", unescape(page)).group().split())


def test_an_eighth_run_looks_unlike_the_first():
    looks = [(plots._colour(index), plots._marker(index)) for index in range(28)]
    assert len(set(looks)) == 28


def test_a_name_that_begins_with_an_underscore_is_in_the_legend():
    figure, axes = plots._figure(3)
    for name in ("_a", "b"):
        axes.plot([0], [0], label=name)
    plots._legend(figure, axes, ["_a", "b"])
    assert sorted(text.get_text() for text in figure.legends[0].get_texts()) == ["_a", "b"]
