"""progress.py: a line every so often in a log, a bar in a terminal; the rate is of this session."""

import io
import sys

import pytest

from posepipe import progress
from posepipe.progress import SECONDS_BETWEEN_LINES, Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(progress.time, "monotonic", found.monotonic)
    return found


def test_a_line_says_how_far_how_quickly_how_long_and_what_else(clock, capsys):
    with Progress("score", 1000, "inputs") as shown:
        clock.now += 20
        shown.update(100, "3 missing")
        assert capsys.readouterr().err == "score: 100/1000 inputs, 5.0/s, 180 s left; 3 missing\n"


def test_the_rate_counts_only_what_this_session_did(clock, capsys):
    with Progress("score", 1000, "inputs", done=800) as shown:
        clock.now += 20
        shown.update(40)
        # 2 a second, and 160 are left.
        assert capsys.readouterr().err == "score: 840/1000 inputs, 2.0/s, 80 s left\n"


def test_lines_come_every_so_often_and_at_the_end(clock, capsys):
    with Progress("score", 100, "inputs") as shown:
        for _ in range(10):
            clock.now += SECONDS_BETWEEN_LINES / 4 + 0.01
            shown.update(10, "1 empty")
        lines = capsys.readouterr().err.splitlines()
        assert [line.split()[1] for line in lines] == ["40/100", "80/100"]
    assert capsys.readouterr().err == "score: 100/100 inputs, 4.0/s; 1 empty\n"


def test_the_note_is_the_last_one(clock, capsys):
    with Progress("score", 3, "inputs") as shown:
        shown.update(1, "1 empty")
        clock.now += 2
        shown.update(2)
    assert capsys.readouterr().err == "score: 3/3 inputs, 1.5/s\n"


def test_nothing_done_has_no_time_left(clock, capsys):
    with Progress("score", 10, "inputs", done=5):
        clock.now += 2
    assert capsys.readouterr().err == "score: 5/10 inputs, 0.0/s\n"


def test_an_error_has_the_last_word(clock, capsys):
    with pytest.raises(KeyError), Progress("score", 10, "inputs"):
        raise KeyError
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_with_the_note(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("score", 1000, "inputs", done=500) as shown:
        shown.update(250, "3 missing")
    shown = terminal.getvalue()
    assert "50%" in shown
    assert "750/1000" in shown
    assert "3 missing" in shown
    assert "score: 750/1000 inputs, " not in shown
