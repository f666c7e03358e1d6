"""The engine of one machine: unit after unit, in this process."""

from __future__ import annotations

from collections.abc import Generator

from fragile_neurons import own
from fragile_neurons.errors import FragileNeuronsError
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import Needs, Unit
from fragile_neurons.runs.subject import Subject


def run_units(subject: Subject, ledger: Ledger) -> Generator[Unit, None, None]:
    """The engine; a mistake of the user ends it, and so does a disk that takes no result."""
    needs, pending = Needs(ledger.units()), ledger.pending()
    missing = {unit.id for unit in pending}
    for unit in pending:
        needed = needs.of(unit)
        if any(one.id in missing for one in needed):
            continue
        try:
            arrays = execute_unit(subject, unit, [(one, ledger.result(one)) for one in needed])
        except FragileNeuronsError:
            raise
        except Exception as error:  # a network of somebody else's raises what it likes
            ledger.record_failure(unit, own.describe(error))
        else:
            ledger.record(unit, arrays)
            missing.remove(unit.id)
        yield unit
