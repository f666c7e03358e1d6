"""How the command speaks: rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

FILE_WIDTH = 100

# names come from users: nothing in them is markup
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
if not console.is_terminal:
    console.width = FILE_WIDTH
errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

SECONDS_BETWEEN_LINES = 10.0


def say(line: str) -> None:
    """One plain line on the error stream, so that standard output stays the result."""
    errors.print(line)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A callback (done so far, note) that draws a bar, or a line every ten seconds.

    SIGINT and SIGTERM become a KeyboardInterrupt when more is done; a second one becomes it at once.
    """
    with _drawn(title, total) as draw, _stopping() as stopping:
        before = 0

        def advance(done: int, note: str) -> None:
            nonlocal before
            draw(done, note)
            if stopping.is_set() and done > before:
                raise KeyboardInterrupt
            before = done

        yield advance


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Set by the first signal to stop; the next one stops at once."""
    asked = threading.Event()

    def stop(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        say("stopping when this piece of work is done; once more stops at once")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _drawn(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    if errors.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=errors) as bar:
            task = bar.add_task(title, total=total, note="")

            def update(done: int, note: str) -> None:
                bar.update(task, completed=done, note=note)

            yield update
        return
    started = last = time.monotonic()

    def line(done: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or done == total:
            last = now
            say(f"{title}: {done} of {total}, {now - started:.0f} s{', ' if note else ''}{note}")

    yield line
