"""Runs of one spec or of a list of them, one after the other, by an engine of choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fragile_neurons.cli.console import errors, progress, say
from fragile_neurons.cli.findings import show_run
from fragile_neurons.errors import FragileNeuronsError, IncompleteError, InputError
from fragile_neurons.runs.engines import Engine, open_engine
from fragile_neurons.runs.spec import Spec
from fragile_neurons.workflows import run_spec

EngineName = Annotated[
    str, typer.Option("--engine", help="local (this process), or ray (many, on one machine or several).")
]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Of a Ray cluster. Default: one of its own, here.")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes of --engine ray here. Default: as many as there are cores for."),
]


def run_specs(
    asked: Sequence[Spec],
    *,
    output: Path | None,
    force: bool,
    engine: str,
    address: str | None,
    workers: int | None,
) -> None:
    """Run and show each; of several, one that fails does not stop the others, and all are told at the end.

    output: the run folder, or of several the folder for their folders.
    """
    with opened(engine, address, workers, max(spec.threads for spec in asked)) as computed_by:
        if len(asked) == 1:
            show_run(run_spec(asked[0], output=output, force=force, engine=computed_by, progress=progress))
            return
        failed = []
        for number, spec in enumerate(asked, 1):
            say(f"run {number} of {len(asked)}: {spec.model} on {spec.data}")
            try:
                run = run_spec(spec, parent=output, force=force, engine=computed_by, progress=progress)
            except (FragileNeuronsError, OSError) as error:
                errors.print(f"error: {error}")
                failed.append(number)
            else:
                show_run(run)
        if failed:
            raise IncompleteError(
                f"{len(failed)} of {len(asked)} runs failed: {', '.join(map(str, failed))}\n"
                "  fix:     see above; the same command again does only what is left"
            )


@contextmanager
def opened(engine: str, address: str | None, workers: int | None, threads: int) -> Iterator[Engine]:
    """The engine of these options."""
    if engine == "local" and (address or workers):
        raise InputError(
            "--address and --workers are for another engine",
            given=f"--engine {engine}",
            allowed="--engine ray",
            fix="add --engine ray, or leave them out",
        )
    if address and workers:
        raise InputError(
            "a cluster has the workers that it has",
            given=f"--workers {workers} with --address {address}",
            allowed="one of the two",
            fix="leave --workers out",
        )
    with open_engine(engine, address=address, cores=workers and workers * threads) as found:
        yield found
