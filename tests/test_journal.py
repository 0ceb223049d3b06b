"""journal.py: one writer at a time, records that are never replaced, and the order in which a run becomes complete and incomplete."""

import json
import os
import socket
import threading
import uuid

import boto3
import pyarrow as pa
import pytest

from posepipe import journal, storage
from posepipe.journal import (
    LostRunError,
    Writer,
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
from posepipe.retrying import StorageUnavailableError

FOREVER = 3600.0


@pytest.fixture(params=["path", "s3"])
def run_uri(request, tmp_path):
    """An empty folder."""
    if request.param == "path":
        return str(tmp_path / "run")
    bucket = f"journal-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=request.getfixturevalue("s3_endpoint")).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/run"


def rows(*numbers):
    return pa.table({"x": pa.array(numbers, pa.int64())})


def writer(run_uri, takeover_after=FOREVER, said=None):
    return Writer(run_uri, takeover_after, say=[].append if said is None else said.append)


def newest(run_uri):
    return storage.read_json(storage.list_files(storage.join_uri(run_uri, "writers"))[-1])


def die(process):
    """What a killed process leaves: no release and no more beats."""
    process._end.set()
    process._thread.join()


def await_taken(process):
    """Returns when the writer has noticed that another one came."""
    assert process._lost.wait(30)


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


# One writer


def test_the_first_writer_writes_at_once_and_says_who_it_is(run_uri):
    said = []
    with writer(run_uri, said=said) as first:
        first.check()
        state = newest(run_uri)
        assert (state["who"], state["released"]) == (f"{socket.gethostname()} process {os.getpid()}", False)
    assert not said
    assert newest(run_uri)["released"]


def test_a_second_writer_is_refused_while_the_first_one_lives_and_told_whose_run_it_is(run_uri):
    said = []
    with writer(run_uri, 0.6) as first:  # shows life every 0.1 s
        with pytest.raises(ValueError, match=rf"{socket.gethostname()} process {os.getpid()} is writing .*run; wait for it, stop it"):
            writer(run_uri, 60.0, said).__enter__()
        first.check()
    assert said == [f"{socket.gethostname()} process {os.getpid()} was writing here; waiting 60 s for a sign of life"]
    assert len(storage.list_files(storage.join_uri(run_uri, "writers"))) == 1


def test_a_run_that_was_released_is_taken_at_once(run_uri):
    for _ in range(3):
        said = []
        with writer(run_uri, FOREVER, said):
            pass
        assert not said
    assert [uri.rpartition("/")[2] for uri in storage.list_files(storage.join_uri(run_uri, "writers"))] == [
        f"{number:06d}.json" for number in (1, 2, 3)
    ]


def test_an_error_releases_too(run_uri):
    with pytest.raises(KeyError), writer(run_uri):
        raise KeyError("a bug")
    assert newest(run_uri)["released"]


def test_a_run_that_is_released_while_somebody_waits_is_taken(run_uri, monkeypatch):
    first = writer(run_uri).__enter__()
    monkeypatch.setattr(journal.time, "sleep", lambda _: first.__exit__(None, None, None))
    with writer(run_uri, 60.0) as second:
        second.check()
        assert second._number == 2


def test_a_writer_that_beats_slowly_is_given_its_own_time(run_uri):
    said = []
    with writer(run_uri, 1.8) as first:  # shows life every 0.3 s
        with pytest.raises(ValueError, match="is writing"):
            writer(run_uri, 0.06, said).__enter__()
        first.check()
    assert said == [f"{socket.gethostname()} process {os.getpid()} was writing here; waiting 1.8 s for a sign of life"]


def test_a_run_without_a_sign_of_life_is_taken_over(run_uri):
    dead = writer(run_uri, 0.3).__enter__()
    die(dead)
    with writer(run_uri, 0.3) as second:
        second.check()
        assert [newest(run_uri)[name] for name in ("id", "released")] == [second._state["id"], False]


def test_a_writer_notices_that_another_one_took_over(run_uri):
    sleeper = writer(run_uri, 0.3)
    waits, is_awake = sleeper._end.wait, threading.Event()
    # It sleeps through its beats until it is woken.
    sleeper._end.wait = lambda timeout: is_awake.wait(60) and waits(timeout)
    with sleeper:
        with writer(run_uri, 0.3) as second:
            sleeper.check()
            is_awake.set()
            await_taken(sleeper)
            with pytest.raises(LostRunError, match=r"run was taken over by another writer while this one gave no sign of life"):
                sleeper.check()
            second.check()
        after = newest(run_uri)
    assert newest(run_uri) == after, "who has lost the run writes no more, also when it ends"
    assert not storage.read_json(storage.join_uri(run_uri, "writers", "000001.json"))["released"]


def test_of_successors_that_race_one_wins(tmp_path):
    run_uri, start = str(tmp_path / "run"), threading.Barrier(6)
    die(writer(run_uri, 1.5).__enter__())
    outcomes, is_over = [], threading.Event()

    def succeed():
        start.wait(30)
        try:
            with writer(run_uri, 1.5):
                outcomes.append("writes")
                is_over.wait(60)
        except ValueError as error:
            outcomes.append("refused" if "another writer has just started" in str(error) or "is writing" in str(error) else str(error))
            if outcomes.count("refused") == 5:
                is_over.set()

    threads = [threading.Thread(target=succeed) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["refused"] * 5 + ["writes"]


def test_a_beat_that_fails_is_followed_by_another(tmp_path, monkeypatch):
    run_uri, beats = str(tmp_path / "run"), []
    has_beaten, write = threading.Event(), storage.write_bytes

    def write_in_the_end(uri, data, patience=None):
        beats.append(json.loads(data)["beat"])
        if len(beats) == 1:
            raise StorageUnavailableError("gone")
        if len(beats) == 2:
            raise PermissionError("denied")
        write(uri, data, patience)
        has_beaten.set()

    with writer(run_uri, 0.06) as held:
        monkeypatch.setattr(storage, "write_bytes", write_in_the_end)
        assert has_beaten.wait(30)
        held.check()


def test_writers_are_counted_beyond_what_others_put_there(tmp_path):
    for name in ("000007.json", "000007.json.partial", "notes.txt", "0000009.json"):
        storage.write_bytes(str(tmp_path / "writers" / name), b'{"released": true, "who": "x"}')
    with writer(str(tmp_path)) as found:
        assert found._number == 8


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
    finish(run_uri, manifest)
    assert order == [f"-{orphan}", "+_MANIFEST.json", "+_SUCCESS"]
    found = [uri.rpartition("/run/")[2] for uri in storage.list_files(run_uri)]
    assert found == sorted(["_MANIFEST.json", "_SUCCESS", kept, *others])
    assert storage.read_json(storage.join_uri(run_uri, storage.MANIFEST)) == manifest


def test_a_run_that_is_cleared_stops_being_complete_first_and_leaves_what_is_not_its_own(run_uri, order):
    own = ["done/ab/000000.json", "inputs/part-00000.parquet", "parts/part-000000-a.parquet", "_MANIFEST.json", "_RUN.json", "_SUCCESS"]
    others = ["photo.jpg", "writers/000001.json", "summary.json"]
    for name in (*own, *others):
        storage.write_bytes(storage.join_uri(run_uri, name), b"")
    order.clear()
    clear(run_uri)
    assert order[:3] == ["-_SUCCESS", "-_MANIFEST.json", "-_RUN.json"]
    # Without its record a part is an orphan; a record without its part would count.
    assert [name.partition("/")[0] for name in order[3:]] == ["-done", "-parts", "-inputs"]
    assert [uri.rpartition("/run/")[2] for uri in storage.list_files(run_uri)] == sorted(others)


def test_clearing_nothing_is_no_error(run_uri):
    clear(run_uri)
    assert storage.list_files(run_uri) == []
