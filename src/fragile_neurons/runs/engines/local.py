"""The engine of one machine: unit after unit, in this process."""

from __future__ import annotations

from collections.abc import Iterator

from fragile_neurons.errors import FragileNeuronsError, InputError
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import Unit, needed
from fragile_neurons.runs.subject import Subject


def run_units(subject: Subject, ledger: Ledger) -> Iterator[Unit]:
    """Compute and store every pending unit; yields each when it is stored.

    Raises InputError where one fails, as for want of memory; what is stored stays.
    """
    plan = ledger.units()
    for unit in ledger.pending():
        try:
            given = [(one, ledger.result(one)) for one in needed(unit, plan)]
            arrays = execute_unit(subject, unit, given)
        except (FragileNeuronsError, OSError):
            raise
        except Exception as error:  # a network of somebody else's raises what it likes
            raise InputError(
                "a unit of work failed",
                given=f"{unit.id}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                allowed=f"batches of {subject.spec.batch_size} images",
                fix="if they are too many at once, start again with a smaller --batch-size",
            ) from error
        ledger.record(unit, arrays)
        yield unit
