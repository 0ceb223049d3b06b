"""journal.py: records that are never replaced, and the order in which a run becomes complete and incomplete."""

import pyarrow as pa
import pytest

from posepipe import inputs, journal, storage
from posepipe.journal import (
    LostRunError,
    clear,
    commit_part,
    done_folder,
    finish,
    list_done,
    read_done,
    read_run,
    require_own,
    require_same,
    write_run,
)


class Alone:
    """A writer whose run nobody takes over."""

    def check(self, is_fresh=False):
        pass


ALONE = Alone()


def rows(*numbers):
    return pa.table({"x": pa.array(numbers, pa.int64())})


@pytest.fixture
def order(monkeypatch):
    """The names that are written and deleted, as they are."""
    found = []
    write, delete = storage.write_bytes, storage.delete

    def note_write(uri, data):
        found.append(f"+{uri.rpartition('/run/')[2]}")
        write(uri, data)

    def note_delete(uris):
        for uri in uris:
            found.append(f"-{uri.rpartition('/run/')[2]}")
            delete([uri])

    monkeypatch.setattr(storage, "write_bytes", note_write)
    monkeypatch.setattr(storage, "delete", note_delete)
    return found


# What it is of


def test_what_a_run_is_of_comes_back(run_uri):
    assert read_run(run_uri) is None
    run = {"identity": {"models": {"pose": "ab"}, "limit": 0, "sample_fraction": 0.1}, "num_inputs": 3}
    write_run(run_uri, run)
    assert read_run(run_uri) == run
    require_same(run_uri, read_run(run_uri)["identity"], run["identity"])


@pytest.mark.parametrize("marker", [storage.SUCCESS, storage.MANIFEST])
def test_a_folder_that_is_complete_as_something_else_is_refused(run_uri, marker):
    require_own(run_uri, None)
    storage.write_bytes(storage.join_uri(run_uri, marker), b"{}")
    require_own(run_uri, {"identity": {}})
    with pytest.raises(ValueError, match=r"run holds something else that is complete; choose another --predictions-uri"):
        require_own(run_uri, None)


def test_a_run_of_something_else_is_refused_with_both_values_of_what_differs():
    older = {"models": {"pose": "aaa"}, "inputs": {"sha256": "111"}, "run_id": "score"}
    wanted = {"models": {"pose": "bbb"}, "inputs": {"sha256": "222"}, "run_id": "score", "limit": 5}
    with pytest.raises(ValueError, match="out holds other predictions") as caught:
        require_same("s3://b/out", older, wanted)
    said = str(caught.value)
    for part in ("aaa", "bbb", "111", "222", "limit was None, now 5", "--overwrite"):
        assert part in said
    assert "run_id" not in said


# Parts and records


def test_a_part_counts_with_its_record(run_uri):
    done_uri = done_folder(run_uri, {"model": "a"})
    assert read_done(done_uri, 3) is None
    assert list_done(done_uri) == {}
    record = commit_part(run_uri, done_uri, 3, rows(1, 2), {"statuses": {"ok": 2}})
    data = storage.read_bytes(storage.join_uri(run_uri, record["file"]))
    digest = storage.sha256(data)
    assert record == {"shard": 3, "file": f"parts/part-000003-{digest[:12]}.parquet", "rows": 2, "sha256": digest, "statuses": {"ok": 2}}
    assert storage.read_table(storage.join_uri(run_uri, record["file"])) == rows(1, 2)
    assert read_done(done_uri, 3) == record
    assert list_done(done_uri) == {3: record}


def test_the_record_comes_after_the_part(run_uri, monkeypatch):
    done_uri = done_folder(run_uri, {})
    seen = []
    create = storage.create_bytes
    monkeypatch.setattr(
        storage,
        "create_bytes",
        lambda uri, data: seen.append(len(storage.list_files(storage.join_uri(run_uri, "parts")))) or create(uri, data),
    )
    commit_part(run_uri, done_uri, 0, rows(1), {})
    assert seen == [1]


def test_the_same_shard_twice_is_one_part(run_uri):
    done_uri = done_folder(run_uri, {})
    first, second = (commit_part(run_uri, done_uri, 0, rows(1, 2), {"statuses": {"ok": 2}}) for _ in range(2))
    assert first == second
    assert len(storage.list_files(storage.join_uri(run_uri, "parts"))) == 1


def test_who_comes_second_with_other_bytes_gets_the_first_ones_record(run_uri):
    done_uri = done_folder(run_uri, {})
    first = commit_part(run_uri, done_uri, 0, rows(1), {})
    second = commit_part(run_uri, done_uri, 0, rows(2), {})
    assert second == first == read_done(done_uri, 0)
    assert storage.read_table(storage.join_uri(run_uri, first["file"])) == rows(1)


def test_records_of_a_run_of_something_else_are_not_seen(run_uri):
    ours, theirs = (done_folder(run_uri, {"model": name}) for name in "ab")
    assert ours == done_folder(run_uri, {"model": "a"}) != theirs
    record = commit_part(run_uri, theirs, 0, rows(1), {})
    assert read_done(ours, 0) is None
    assert list_done(ours) == {}
    assert commit_part(run_uri, ours, 0, rows(2), {}) != record
    assert list_done(theirs) == {0: record}


def test_records_that_are_forgotten_may_be_written_anew(run_uri):
    done_uri = done_folder(run_uri, {})
    for shard in range(3):
        commit_part(run_uri, done_uri, shard, rows(shard), {})
    journal.forget_done(done_uri, [0, 2])
    assert list(list_done(done_uri)) == [1]
    assert commit_part(run_uri, done_uri, 0, rows(9), {}) == read_done(done_uri, 0)


def test_many_records_are_listed_by_their_shard(tmp_path):
    done_uri = done_folder(str(tmp_path), {})
    records = {shard: {"shard": shard, "rows": shard} for shard in (0, 7, 999_999, 1_000_000)}
    for shard, record in records.items():
        storage.write_json(f"{done_uri}/{shard:06d}.json", record)
    storage.write_bytes(f"{done_uri}/000001.json.0f.partial", b"{")
    assert list_done(done_uri) == records


# Complete and not


def test_a_finished_run_has_the_parts_that_count_and_what_is_not_its_own(run_uri, order):
    kept, orphan = "parts/part-000000-aaaaaaaaaaaa.parquet", "parts/part-000000-bbbbbbbbbbbb.parquet"
    others = ["done/ab/000000.json", "inputs/part-00000.parquet", "mine/part-000000-bbbbbbbbbbbb.parquet", "photo.jpg"]
    for name in (kept, orphan, *others):
        storage.write_bytes(storage.join_uri(run_uri, name), b"")
    order.clear()
    manifest = {"files": [{"file": kept}], "num_inputs": 1}
    finish(run_uri, manifest, ALONE)
    assert order == [f"-{orphan}", "-_REDO.json", "+_MANIFEST.json", "+_SUCCESS"]
    found = [uri.rpartition("/run/")[2] for uri in storage.list_files(run_uri)]
    assert found == sorted(["_MANIFEST.json", "_SUCCESS", kept, *others])
    assert storage.read_json(storage.join_uri(run_uri, storage.MANIFEST)) == manifest


KEPT, ORPHAN = "parts/part-000000-aaaaaaaaaaaa.parquet", "parts/part-000001-bbbbbbbbbbbb.parquet"
INPUTS, RECORD = "inputs/part-00000-0123456789ab.parquet", "done/0123456789ab/000000.json"
HALF_WRITTEN = f"{ORPHAN}.{'0f' * 16}.partial"
OTHERS = [
    "done/0123456789ab/a.jpg",
    "done/000000.json",
    "done/0123456789ab/sub/000000.json",
    "inputs/a.jpg",
    "inputs/part-00000.parquet",
    "inputs/part-00000-0123-c000.snappy.parquet",
    "parts/a.jpg",
    "parts/part-000000.jpg",
    "parts/part-000000-aaaaaaaaaaaa.parquet.jpg",
    "parts/sub/a.jpg",
    f"parts/sub/{ORPHAN.rpartition('/')[2]}",
]
"""Files of others in the folders of a run."""


def test_pictures_in_a_runs_own_folders_outlast_its_end(run_uri):
    for name in (KEPT, ORPHAN, HALF_WRITTEN, *OTHERS):
        storage.write_bytes(storage.join_uri(run_uri, name), b"")
    finish(run_uri, {"files": [{"file": KEPT}]}, ALONE)
    found = {uri.rpartition("/run/")[2] for uri in storage.list_files(run_uri)}
    assert found == {KEPT, *OTHERS, "_MANIFEST.json", "_SUCCESS"}


def test_pictures_in_a_runs_own_folders_outlast_its_clearing(run_uri):
    half_written = [HALF_WRITTEN, f"{INPUTS}.{'a' * 32}.partial", f"done/0123456789ab/1000000.json.{'b' * 32}.partial"]
    for name in (KEPT, INPUTS, RECORD, *half_written, *OTHERS):
        storage.write_bytes(storage.join_uri(run_uri, name), b"")
    clear(run_uri, ALONE)
    assert {uri.rpartition("/run/")[2] for uri in storage.list_files(run_uri)} == set(OTHERS)


def test_the_names_that_are_cleared_are_those_that_are_written(run_uri):
    done_uri = done_folder(run_uri, {"model": "a"})
    record = commit_part(run_uri, done_uri, 1_000_000, rows(1), {})
    table = inputs.read_inputs(storage.join_uri(run_uri, "done"))
    files = inputs.write_inputs(run_uri, table, 1)
    assert set(journal.list_parts(run_uri)) == {record["file"]}
    assert len(files) == 1
    clear(run_uri, ALONE)
    assert storage.list_files(run_uri) == []


def test_other_files_of_a_run_are_cleared_only_where_one_was_begun(run_uri):
    uri = storage.join_uri(run_uri, "summary.json")
    storage.write_bytes(uri, b"{}")
    clear(run_uri, ALONE, "summary.json")
    assert storage.exists(uri)
    write_run(run_uri, {})
    clear(run_uri, ALONE, "summary.json")
    assert storage.list_files(run_uri) == []


def test_a_copy_of_a_part_elsewhere_is_no_part(run_uri):
    storage.write_bytes(storage.join_uri(run_uri, f"parts/sub/{KEPT.rpartition('/')[2]}"), b"")
    assert journal.list_parts(run_uri) == {}
    with pytest.raises(LostRunError, match=r"1 parts of .* are gone"):
        finish(run_uri, {"files": [{"file": KEPT}]}, ALONE)


def test_a_copy_of_a_record_elsewhere_is_no_record(run_uri):
    done_uri = done_folder(run_uri, {})
    storage.write_json(storage.join_uri(done_uri, "sub", "000000.json"), {"shard": 0})
    assert list_done(done_uri) == {}


def test_a_run_whose_part_was_taken_away_does_not_become_complete(run_uri, order):
    parts = [f"parts/part-00000{shard}-aaaaaaaaaaaa.parquet" for shard in range(3)]
    storage.write_bytes(storage.join_uri(run_uri, parts[1]), b"")
    order.clear()
    with pytest.raises(LostRunError, match=rf"2 parts of {run_uri} are gone, the first is {parts[0]}; the same command makes them again"):
        finish(run_uri, {"files": [{"file": name} for name in parts]}, ALONE)
    assert order == []


class Lost:
    """A writer who hears after so many looks that another one has taken over."""

    def __init__(self, num_looks):
        self.num_looks = num_looks

    def check(self, is_fresh=False):
        assert is_fresh
        self.num_looks -= 1
        if self.num_looks < 0:
            raise LostRunError


@pytest.mark.parametrize("num_looks", [0, 1])
def test_who_has_lost_a_run_does_not_complete_it(run_uri, num_looks):
    storage.write_bytes(storage.join_uri(run_uri, KEPT), b"")
    with pytest.raises(LostRunError):
        finish(run_uri, {"files": []}, Lost(num_looks))
    found = [uri.rpartition("/run/")[2] for uri in storage.list_files(run_uri)]
    assert found == ([] if num_looks else [KEPT])


@pytest.mark.parametrize("num_looks", [0, 1, 2])
def test_who_has_lost_a_run_clears_no_more_of_it(run_uri, num_looks):
    names = [RECORD, KEPT, INPUTS]
    for name in names:
        storage.write_bytes(storage.join_uri(run_uri, name), b"")
    with pytest.raises(LostRunError):
        clear(run_uri, Lost(num_looks))
    assert {uri.rpartition("/run/")[2] for uri in storage.list_files(run_uri)} == set(names[num_looks:])


def test_a_run_that_is_cleared_stops_being_complete_first_and_leaves_what_is_not_its_own(run_uri, order):
    own = [RECORD, INPUTS, KEPT, "_MANIFEST.json", "_RUN.json", "_SUCCESS"]
    others = ["photo.jpg", "writers/000001.json", "summary.json"]
    for name in (*own, *others):
        storage.write_bytes(storage.join_uri(run_uri, name), b"")
    order.clear()
    clear(run_uri, ALONE)
    assert order[:4] == ["-_SUCCESS", "-_MANIFEST.json", "-_REDO.json", "-_RUN.json"]
    # Without its record a part is an orphan; a record without its part would count.
    assert [name.partition("/")[0] for name in order[4:]] == ["-done", "-parts", "-inputs"]
    assert [uri.rpartition("/run/")[2] for uri in storage.list_files(run_uri)] == sorted(others)


def test_clearing_nothing_is_no_error(run_uri):
    clear(run_uri, ALONE)
    assert storage.list_files(run_uri) == []
