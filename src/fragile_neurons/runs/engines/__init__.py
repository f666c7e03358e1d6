"""Who computes the units of a run: this process, or many, on one machine or several."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from fragile_neurons.errors import InputError, check_choice
from fragile_neurons.runs.engines.local import run_units
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import Unit
from fragile_neurons.runs.subject import Subject

ENGINES = ("local", "ray")

Engine = Callable[[Subject, Ledger], Generator[Unit, None, None]]
"""Computes every pending unit of a ledger and yields each when its result is stored, or its failure.

What needs a unit that failed stays pending. Closed early, it stores what is being computed.
"""


@contextmanager
def open_engine(name: str, *, address: str | None = None, cores: int | None = None) -> Iterator[Engine]:
    """`local`: this process; `ray`: the cluster at an address, or one of so many cores of this machine."""
    check_choice("engine", name, ENGINES)
    if name == "local":
        yield run_units
        return
    try:
        from fragile_neurons.runs.engines.ray import on_ray
    except ImportError:
        raise InputError(
            "the engine is not installed",
            given=name,
            allowed="local, or ray with its extra",
            fix="pip install 'fragile-neurons[ray]'",
        ) from None
    with on_ray(address, cores) as engine:
        yield engine
