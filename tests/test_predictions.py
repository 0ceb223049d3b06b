"""predictions.py: only complete runs are read, and of them what the manifest lists, in its order."""

import uuid
from typing import get_args

import pyarrow as pa
import pytest

from posepipe import storage
from posepipe.config import BadStatus
from posepipe.images import STATUSES
from posepipe.predictions import PREDICTION, iter_predictions, list_predictions, read_manifest, read_predictions
from posepipe.storage import join_uri

PARTS = {"parts/part-000001-b.parquet": ["c", "d"], "parts/part-000000-a.parquet": ["b", "a"]}
ORPHAN = "parts/part-000000-z.parquet"


@pytest.fixture(params=["path", "memory"])
def folder(request, tmp_path):
    return str(tmp_path / "out") if request.param == "path" else f"memory://{uuid.uuid4().hex}"


def write_parts(folder):
    for name, uris in {**PARTS, ORPHAN: ["z"]}.items():
        rows = [{"sample_id": uri, "uri": uri, "status": "ok", "joints": [0.5] * 32} for uri in uris]
        storage.write_table(join_uri(folder, name), pa.Table.from_pylist(rows, PREDICTION))


def complete(folder):
    write_parts(folder)
    manifest = {"files": [{"file": name, "rows": len(PARTS[name])} for name in sorted(PARTS)], "num_inputs": 4}
    storage.write_json(join_uri(folder, storage.MANIFEST), manifest)
    storage.write_bytes(join_uri(folder, storage.SUCCESS), b"")
    return manifest


def test_the_files_of_the_manifest_are_read_in_its_order_and_no_others(folder):
    manifest = complete(folder)
    assert read_manifest(folder) == manifest
    assert [uri.rpartition("/")[2] for uri in list_predictions(folder)] == ["part-000000-a.parquet", "part-000001-b.parquet"]
    table = read_predictions(folder)
    assert table.schema.equals(PREDICTION)
    assert table["uri"].to_pylist() == ["b", "a", "c", "d"]
    assert [part["uri"].to_pylist() for part in iter_predictions(folder)] == [["b", "a"], ["c", "d"]]


def test_columns_are_read_alone(folder):
    complete(folder)
    assert read_predictions(folder, ["status", "uri"]).column_names == ["status", "uri"]
    assert [part.column_names for part in iter_predictions(folder, ["uri"])] == [["uri"]] * 2


@pytest.mark.parametrize("read", [read_manifest, list_predictions, read_predictions, lambda uri: next(iter_predictions(uri))])
def test_a_run_without_its_marker_is_not_read(folder, read):
    with pytest.raises(ValueError, match=r"no complete predictions at .*: expected _SUCCESS, as jobs.score leaves it"):
        read(folder)
    storage.write_bytes(join_uri(folder, storage.SUCCESS), b"")
    with pytest.raises(ValueError, match=r"no complete predictions at .*: expected _MANIFEST.json, as jobs.score leaves it"):
        read(folder)
    complete(folder)
    storage.delete([join_uri(folder, storage.SUCCESS)])
    with pytest.raises(ValueError, match="no complete predictions at"):
        read(folder)


def test_files_are_read_one_by_one(folder, monkeypatch):
    complete(folder)
    read = []
    read_table = storage.read_table
    monkeypatch.setattr(storage, "read_table", lambda uri, columns=None: read.append(uri) or read_table(uri, columns))
    parts = iter_predictions(folder)
    next(parts)
    assert len(read) == 1


def test_every_column_says_what_it_is():
    assert all(field.metadata and field.metadata[b"doc"] for field in PREDICTION)
    assert len(set(PREDICTION.names)) == len(PREDICTION.names)


def test_statuses_are_one_list():
    assert b"posepipe.images.STATUSES" in PREDICTION.field("status").metadata[b"doc"]
    assert STATUSES.keys() - {"ok"} == set(get_args(BadStatus))
    assert {"ok", "missing", "forbidden", "truncated", "not_an_image", "unsupported", "too_large", "decoder_crashed"} <= set(STATUSES)
