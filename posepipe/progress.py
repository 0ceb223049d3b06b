"""Says how far a job is: a bar in a terminal, a line every so often in a log."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts units of work, of which `done` are done before. Use as a context manager, call `update` with how many more are done."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._before, self._done, self._start, self._last_line = done, done, time.monotonic(), time.monotonic()
        self._note = ""
        self._bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}", smoothing=0.1) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._print_line()

    def update(self, count: int, note: str = "") -> None:
        """Counts `count` more; `note` is what else to say now."""
        self._done += count
        self._note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._print_line()

    def _print_line(self) -> None:
        seconds = max(time.monotonic() - self._start, 1e-6)
        rate = (self._done - self._before) / seconds
        left = f", {(self._total - self._done) / rate:.0f} s left" if rate and self._done < self._total else ""
        note = f"; {self._note}" if self._note else ""
        print(f"{self._what}: {self._done}/{self._total} {self._unit}, {rate:.1f}/s{left}{note}", file=sys.stderr, flush=True)
