"""writers.py: one writer at a time, told from dead ones by signs of life."""

import json
import os
import signal
import socket
import threading
import time

import pytest

from posepipe import storage, writers
from posepipe.retrying import StorageUnavailableError
from posepipe.writers import LostRunError, Writer

FOREVER = 3600.0


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
        with pytest.raises(ValueError, match=rf"{socket.gethostname()} process {os.getpid()} is writing .*run; wait for it, or stop it"):
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
    monkeypatch.setattr(writers.time, "sleep", lambda _: first.__exit__(None, None, None))
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


@pytest.fixture
def interruptible():
    """Ctrl-C means here what Python makes of it, whatever ran in this process before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_what_never_asks_is_interrupted_when_another_one_took_over(run_uri, interruptible):
    with Writer(run_uri, 0.3, say=[].append, interrupt=True) as asleep:
        storage.write_json(storage.join_uri(run_uri, "writers", "000002.json"), {})
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
        assert time.monotonic() - started < 20, "not only when it has slept enough"
        with pytest.raises(LostRunError):
            asleep.check()


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
