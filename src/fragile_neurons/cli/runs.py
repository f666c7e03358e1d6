"""fragile-neurons resume | status | verify"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fragile_neurons.cli import running
from fragile_neurons.cli.console import console, progress
from fragile_neurons.cli.findings import show_run
from fragile_neurons.errors import IncompleteError, IntegrityError
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.workflows import resume as resume_run

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]


def resume(
    folder: Folder,
    engine: running.EngineName = "local",
    address: running.Address = None,
    workers: running.Workers = None,
) -> None:
    """Finish an interrupted or damaged run; what is done is not done again.

    Example: fragile-neurons resume runs/mnist-cnn-mnist-1a2b3c4d
    """
    with Ledger(folder) as ledger:
        threads = ledger.spec.threads
    with running.opened(engine, address, workers, threads) as computed_by:
        show_run(resume_run(folder, engine=computed_by, progress=progress))


def status(folder: Folder) -> None:
    """How far a run is; exit code 3 while it is not finished.

    Example: fragile-neurons status runs/mnist-cnn-mnist-1a2b3c4d
    """
    with Ledger(folder) as ledger:
        units, left, exported = len(ledger.units()), len(ledger.pending()), ledger.is_exported
        failures = ledger.failures if left else {}
    state = f"{units - left} of {units} units done"
    if left or not exported:
        failed = [f"  failed:  {unit}: {reason}" for unit, reason in failures.items()]
        raise IncompleteError(
            "\n".join([f"{folder}: {state}", *failed, f"  fix:     fragile-neurons resume {folder}"])
        )
    console.print(f"{folder}: {state}, all files written")


def verify(folder: Folder) -> None:
    """Hold every stored result and every file against its checksum; exit code 4 if one differs.

    Example: fragile-neurons verify runs/mnist-cnn-mnist-1a2b3c4d
    """
    with Ledger(folder) as ledger:
        damage, units, left = ledger.damage(), len(ledger.units()), len(ledger.pending())
        exported = ledger.is_exported
    if damage:
        raise IntegrityError(
            f"{folder} is damaged: {', '.join(damage)}\n"
            f"  fix:     fragile-neurons resume {folder} makes these again, and only these"
        )
    if left or not exported:
        console.print(
            f"{folder}: {units - left} of {units} units are as they were written, the rest is not there yet\n"
            f"  fix:     fragile-neurons resume {folder}"
        )
    else:
        console.print(f"{folder}: {units} units and all files are as they were written")
