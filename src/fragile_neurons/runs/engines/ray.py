"""The engine of many processes and machines: Ray runs the units, this process alone keeps the ledger."""

from __future__ import annotations

import logging
import os
import secrets
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from graphlib import TopologicalSorter
from pickle import PicklingError
from typing import Any

from fragile_neurons import own
from fragile_neurons.errors import FragileNeuronsError, InputError
from fragile_neurons.evidence import Arrays
from fragile_neurons.runs.environment import difference, environment
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import Needs, Unit
from fragile_neurons.runs.subject import Subject

# read by Ray when it is imported: whoever reaches a cluster runs code on it, so it asks for a token; and it
# reports to nobody
for _name, _value in {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray.exceptions import RayError, RayTaskError  # noqa: E402

from fragile_neurons.runs.engines.sharing import ready, share  # noqa: E402  imports Ray too

PATIENCE = 60.0  # seconds without news, after which it is asked whether any machine is left
RETRIES = 2  # of a unit whose worker died: what kills three workers is at fault itself
NODE = "ray.io/node-id"
LOOPBACK = "127.0.0.1"

log = logging.getLogger(__name__)


@contextmanager
def on_ray(
    address: str | None = None, cores: int | None = None
) -> Iterator[Callable[[Subject, Ledger], Generator[Unit, None, None]]]:
    """An engine on the cluster at an address, or on one of its own on this machine's loopback.

    cores: of that one; all if None. It has a token of its own, unless the environment says otherwise.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"num_cpus": cores, "include_dashboard": False, "_node_ip_address": LOOPBACK}
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", **options)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise InputError(
            "no Ray cluster can be reached",
            given=f"{address or 'this machine'}: {own.describe(error)}",
            allowed="the address of a head node, with its token in RAY_AUTH_TOKEN",
            fix="see docs/scale.md",
        ) from error
    with suppress(ValueError):  # Ray has put its own there, but in the main thread alone
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield run_units
    finally:
        ray.shutdown()


def run_units(subject: Subject, ledger: Ledger) -> Generator[Unit, None, None]:
    """The engine: a window of units at once, each when what it needs is stored."""
    needs, pending = Needs(ledger.units()), {unit.id: unit for unit in ledger.pending()}
    if not pending:
        return
    crew = _sent(subject, ledger)
    order: TopologicalSorter[str] = TopologicalSorter()
    for unit in pending.values():
        order.add(unit.id, *(one.id for one in needs.of(unit) if one.id in pending))
    order.prepare()
    waiting: deque[Unit] = deque()
    running: dict[Any, Unit] = {}
    try:
        while True:
            waiting.extend(pending[name] for name in order.get_ready())
            while waiting and len(running) < crew.window():
                unit = waiting.popleft()
                given = [(one, ledger.result(one)) for one in needs.of(unit)]
                running[crew.hand_out(unit, given)] = unit
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=PATIENCE)
            if not done:
                crew.refuse_if_alone()
                continue
            unit = running.pop(done[0])
            found = _arrays(done[0], unit, ledger)
            if isinstance(found, _Refused):
                crew.refuse(found)
                waiting.appendleft(unit)
                continue
            if found is not None:
                ledger.record(unit, found)
                order.done(unit.id)
            yield unit
    except GeneratorExit:  # asked to stop: what the workers are at is finished
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            unit = running.pop(done[0])
            found = _arrays(done[0], unit, ledger)
            if isinstance(found, dict):
                ledger.record(unit, found)
        raise
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _arrays(done: Any, unit: Unit, ledger: Ledger) -> Arrays | _Refused | None:
    """What a worker came to; None for a unit that failed, which is recorded."""
    try:
        found: Arrays | _Refused = ray.get(done)
    except RayError as error:
        ledger.record_failure(unit, _reason(error))
        return None
    return found


def _reason(error: RayError) -> str:
    """What to tell of a unit that failed; raises what the user is at fault for."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, FragileNeuronsError):
        raise cause
    return own.describe(cause)


@dataclass(frozen=True)
class _Refused:
    """A node that would compute other numbers, or none, and why."""

    node: str
    difference: str


def _sent(subject: Subject, ledger: Ledger) -> _Crew:
    """The workers, with what they need on its way; raises InputError where it cannot travel."""
    try:
        return _Crew(subject, ledger.environment)
    except (RayError, TypeError, RuntimeError, PicklingError) as error:
        raise InputError(
            "the network or the images cannot be sent to workers",
            given=own.describe(error),
            allowed="a network that can be pickled, and room for the images in Ray's object store",
            fix="keep no open files or locks in the network, or use --engine local",
        ) from error


class _Crew:
    """The workers of a cluster, but for those on nodes that compute other numbers than this process."""

    def __init__(self, subject: Subject, planned: dict[str, str]) -> None:
        self._cores = subject.spec.threads
        self._shared = ray.put((share(subject), planned))
        self._task = ray.remote(_execute)
        self._options: dict[str, Any] = {
            "num_cpus": self._cores,
            "num_gpus": 1 if subject.spec.device.startswith("cuda") else 0,
            "max_retries": RETRIES,
        }
        self._refused: set[str] = set()
        self.refuse_if_alone()

    def window(self) -> int:
        """How many units may be handed out."""
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return max(1, int(resources.get("CPU", 0)) // self._cores)

    def _able(self) -> set[str]:
        """The nodes that have what a worker needs."""
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return {
            node["NodeID"]
            for node in nodes
            if node["Alive"]
            and node["Resources"].get("CPU", 0) >= self._cores
            and node["Resources"].get("GPU", 0) >= self._options["num_gpus"]
        }

    def hand_out(self, unit: Unit, given: Sequence[tuple[Unit, Arrays]]) -> Any:
        """Have a unit computed: a reference to its arrays, or to a refusal.

        Ray's own tools and the list of processes show its name.
        """
        named = self._task.options(name=f"unit {unit.id}", **self._options)
        return named.remote([self._shared], unit, given)

    def refuse_if_alone(self) -> None:
        """Raise an InputError where no machine is left that could take a unit."""
        if not self._able() - self._refused:
            raise InputError(
                "no machine of the cluster can take a unit",
                given=f"--threads {self._cores}, {self._options['num_gpus']} GPUs",
                allowed="at least one machine with so many cores and GPUs",
                fix="start such a worker and resume, or begin a run with fewer --threads",
            )

    def refuse(self, found: _Refused) -> None:
        """Hand nothing more to a node; raises InputError if no other is left."""
        if found.node not in self._refused:
            log.warning("a machine is left out, other numbers would come out there: %s", found.difference)
        self._refused.add(found.node)
        self._options["label_selector"] = {NODE: f"!in({','.join(sorted(self._refused))})"}
        if self._able() <= self._refused:
            raise InputError(
                "every machine would compute other numbers than this one",
                given=found.difference,
                allowed="workers with the versions and the kind of processor that the run began with",
                fix="start the run from one of the workers, or install the same versions there",
            )


def _execute(shared: Sequence[Any], unit: Unit, given: Sequence[tuple[Unit, Arrays]]) -> Arrays | _Refused:
    """One unit in a worker; shared: a reference to the subject and to what it should compute here."""
    try:
        subject, other = _opened(*shared)
    except Exception as error:  # what the network needs is not there, or is another version
        subject, other = None, own.describe(error)
    if subject is None or other:
        return _Refused(ray.get_runtime_context().get_node_id(), other)
    # what comes from the store can only be read
    own_given = [(one, {name: array.copy() for name, array in arrays.items()}) for one, arrays in given]
    return execute_unit(subject, unit, own_given)


@lru_cache(maxsize=1)
def _opened(shared: Any) -> tuple[Subject, str]:
    """The subject in this worker, and how what it computes here differs from where the run began."""
    subject, planned = ray.get(shared)
    return ready(subject), difference(planned, environment(subject))
