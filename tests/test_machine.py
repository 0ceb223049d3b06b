"""benchmarks/machine.py: what is read of nvidia-smi, by a stand-in that prints what it documents."""

import datetime
import time

from benchmarks import machine

SMI = """#!/bin/sh
echo '2026/11/26 09:00:00.100, 40'
echo '2026/11/26 09:00:00.200, 60'
echo '2026/11/26 09:00:01.000, [N/A]'
echo '2026/11/26 09:00:02.000, 100'
exec sleep 60
"""


def at(second):
    return datetime.datetime(2026, 11, 26, 9, 0, second).timestamp()


def test_how_busy_a_gpu_was_between_two_times(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with machine.GpuWatch() as watch:
        deadline = time.monotonic() + 30
        while watch.mean(at(2), at(3)) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert watch.mean(at(0), at(1)) == 0.5
        assert watch.mean(at(2), at(3)) == 1
        assert watch.mean(at(1), at(2) - 0.5) is None


def test_without_a_gpu_there_is_nothing_to_see(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with machine.GpuWatch() as watch:
        assert watch.mean(0, 2e9) is None
    assert machine._ask_gpus("name") == []
