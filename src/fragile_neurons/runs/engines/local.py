"""The engine of one machine: unit after unit, in this process."""

from __future__ import annotations

from collections.abc import Callable

from fragile_neurons.runs.execute import Subject, execute_unit
from fragile_neurons.runs.ledger import Ledger


def run_units(subject: Subject, ledger: Ledger, advance: Callable[[int, str], None]) -> None:
    """Compute and store every pending unit; `advance` hears how many are done, and which comes next."""
    pending = ledger.pending()
    done = len(ledger.units()) - len(pending)
    for unit in pending:
        advance(done, unit.id)
        ledger.record(unit, execute_unit(subject, unit))
        done += 1
    advance(done, "" if pending else "all of them before")
