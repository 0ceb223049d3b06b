"""gallery.py: a spread of a run's good rows is drawn on their pictures."""

import io
import socket

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from posepipe import fetching, gallery, overlays, storage, web_reads
from posepipe.gallery import draw_overlays
from posepipe.predictions import PREDICTION, list_predictions


@pytest.fixture
def run(tmp_path):
    """Writes a complete run of rows (status, has a picture) per file over grey pictures; returns its URI."""

    def write(*files):
        run_uri, listed, index = str(tmp_path / "out"), [], 0
        for number, rows in enumerate(files):
            table = []
            for status, has_picture in rows:
                uri = str(tmp_path / f"{index}.png")
                if has_picture:
                    Image.new("RGB", (60, 40), (index,) * 3).save(uri)
                points = [20.0 + index, 10.0] * 16 if status == "ok" else None
                table.append({"sample_id": uri, "uri": uri, "status": status, "joints": points, "width": 60, "height": 40})
                index += 1
            name = f"parts/part-{number:06d}.parquet"
            storage.write_table(storage.join_uri(run_uri, name), pa.Table.from_pylist(table, PREDICTION))
            listed.append({"file": name})
        storage.write_json(storage.join_uri(run_uri, storage.MANIFEST), {"files": listed})
        storage.write_bytes(storage.join_uri(run_uri, storage.SUCCESS), b"")
        return run_uri

    return write


@pytest.fixture
def drawn(monkeypatch):
    """The sample ids and the pictures' greys of what is drawn."""
    found = []

    def overlay_rows(data, rows, *_):
        [row] = rows
        found.append(
            (int(row["sample_id"].rpartition("/")[2].removesuffix(".png")), int(np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0]))
        )

    monkeypatch.setattr(overlays, "overlay_rows", overlay_rows)
    monkeypatch.setattr(overlays, "draw_grid", lambda tiles: b"%d tiles" % len(tiles))
    return found


def test_rows_are_spread_evenly_over_the_run_each_on_its_own_picture(run, drawn, tmp_path):
    run_uri = run(*[[("ok", True)] * 4] * 5)
    draw_overlays(run_uri, str(tmp_path / "grid"), 5)
    # Steps of 4.75 rows.
    assert drawn == [(index, index) for index in (0, 5, 10, 14, 19)]
    assert storage.read_bytes(str(tmp_path / "grid")) == b"5 tiles"


def test_only_good_rows_whose_picture_is_there_are_drawn(run, drawn, tmp_path):
    run_uri = run([("ok", True), ("missing", False), ("ok", False)], [("truncated", True), ("ok", True)])
    draw_overlays(run_uri, str(tmp_path / "grid"), 10)
    assert drawn == [(0, 0), (4, 4)]


def test_without_a_picture_nothing_is_drawn_and_that_is_said(run, drawn, tmp_path, caplog):
    draw_overlays(run([("ok", False)], [("empty", True)]), str(tmp_path / "grid"), 3)
    assert not (tmp_path / "grid").exists()
    assert "none of the pictures of" in caplog.text


def test_a_web_server_that_has_gone_since_is_not_waited_for(run, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "PATIENCE", 0.1)
    monkeypatch.setattr(web_reads, "_silent", {})
    run_uri = run([("ok", True), ("ok", True)])
    [part] = list_predictions(run_uri)
    table = storage.read_table(part)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{closed.getsockname()[1]}/0.png"
        uris = pa.array([gone, table["uri"][1].as_py()])
        storage.write_table(part, table.set_column(table.column_names.index("uri"), "uri", uris))
        draw_overlays(run_uri, str(tmp_path / "grid"), 2)
    assert drawn == [(1, 1)]


def test_a_run_that_is_not_complete_is_not_drawn(tmp_path):
    with pytest.raises(ValueError, match="no complete predictions at"):
        draw_overlays(str(tmp_path), str(tmp_path / "grid"), 3)


def test_the_grid_is_a_picture(run, tmp_path):
    draw_overlays(run([("ok", True)] * 3), str(tmp_path / "grid.jpg"), 3)
    assert Image.open(tmp_path / "grid.jpg").format == "JPEG"


def test_pictures_are_read_as_scoring_reads_them(run, drawn, tmp_path, monkeypatch):
    asked = []
    read_ahead = fetching.read_ahead
    monkeypatch.setattr(fetching, "read_ahead", lambda uris, *limits, **others: asked.extend(uris) or read_ahead(uris, *limits, **others))
    draw_overlays(run([("ok", True), ("empty", True), ("ok", True)]), str(tmp_path / "grid"), 1)
    assert len(asked) == 1, "only what is drawn is read"
