"""What is left of a run: an engine computes it, people hear how far it is, and why units failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path

from fragile_neurons.errors import IncompleteError
from fragile_neurons.honesty import check_inputs
from fragile_neurons.probe import FLAGGED
from fragile_neurons.runs.engines import Engine
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.subject import Subject

WARNED_OF = ("inputs", "gradients")
SHOWN_FAILURES = 3

log = logging.getLogger(__name__)

Advance = Callable[[int, str], None]
"""Called with the units done and a note on the last one."""
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""From a title and the number of units to what hears of each."""


def silent(title: str, total: int) -> AbstractContextManager[Advance]:
    """Progress that nobody hears."""
    return nullcontext(lambda done, note: None)


def run_remaining(subject: Subject, ledger: Ledger, engine: Engine, progress: Progress) -> None:
    """Compute every unit that has no result; raises IncompleteError where units failed."""
    spec, total, left = subject.spec, len(ledger.units()), len(ledger.pending())
    done = total - left
    with progress("units", total) as advance:
        advance(done, "" if left else "all of them before")
        if subject.hardening is not None:
            telling = replace(
                subject.hardening, scratch=ledger.folder, tell=lambda note: advance(done, f"fitting: {note}")
            )
            subject = replace(subject, hardening=telling)
        with closing(engine(subject, ledger)) as units:
            for unit in units:
                done += 1
                advance(done, unit.id)
                if unit.kind in WARNED_OF and not unit.network:
                    _warn(subject, ledger)
    if left := len(ledger.pending()):
        raise IncompleteError(_told(ledger.failures, total - left, total, ledger.folder, spec.batch_size))


def _told(failures: Mapping[str, str], done: int, total: int, folder: Path, batch_size: int) -> str:
    """What to say of a run in which units failed."""
    shown = [f"  {unit}: {reason}" for unit, reason in list(failures.items())[:SHOWN_FAILURES]]
    if len(failures) > len(shown):
        shown.append(f"  and {len(failures) - len(shown)} more: fragile-neurons status {folder}")
    units = f"{len(failures)} unit{'s' * (len(failures) > 1)}"
    return "\n".join(
        [
            f"{units} of work failed, {done} of {total} are done and kept",
            *shown,
            f"  fix:     if {batch_size} images at once are too many, begin anew with --batch-size;",
            f"           when the cause is mended: fragile-neurons resume {folder}",
        ]
    )


def _warn(subject: Subject, ledger: Ledger) -> None:
    """Tell at once what is wrong with the inputs, when both checks are there: the rest takes minutes."""
    missing = {unit.id for unit in ledger.pending()}
    cheap = {
        unit.kind: ledger.result(unit)
        for unit in ledger.units()
        if unit.kind in WARNED_OF and not unit.network and unit.id not in missing
    }
    if len(cheap) < len(WARNED_OF):
        return
    for check in check_inputs(cheap["inputs"], cheap["gradients"], subject.data.classes):
        if check.status in FLAGGED:
            log.warning("%s (%s): %s; %s", check.name, check.status, check.meaning, check.advice)
