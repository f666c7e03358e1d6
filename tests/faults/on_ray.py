"""Runs of the small network on Ray; a process of its own, so that a test can give it a network of its own.

    python tests/faults/on_ray.py FOLDER --workers 2 [--neurons-per-unit 1] [--shuffled] [--kill 3]

Prints, as JSON, the units that were computed, the workers killed and the seconds that the run took.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import BATCH, IMAGES, small_images, small_network, small_spec

from fragile_neurons import Classifier, FragileNeuronsError
from fragile_neurons.runs.engines import Engine, open_engine
from fragile_neurons.runs.environment import environment
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import Unit, make_plan
from fragile_neurons.runs.subject import Subject, open_subject
from fragile_neurons.workflows import run_subject, silent


class Faulty(nn.Module):
    """A network that ends its process, or raises, when a worker shows it one batch; here it is harmless."""

    def __init__(self, module: nn.Module, fault: str, batch: torch.Tensor) -> None:
        super().__init__()
        self.module, self.fault, self.batch, self.home = module, fault, batch, os.getpid()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if os.getpid() != self.home and images.shape == self.batch.shape and torch.equal(images, self.batch):
            if self.fault == "exit":
                os._exit(1)
            raise MemoryError("no room for this batch")
        found: torch.Tensor = self.module(images)
        return found


def subject_of(fault: str | None) -> Subject:
    classifier, data = small_network(), small_images()
    if fault:
        batch = classifier.normalise(data[BATCH : 2 * BATCH][0])
        module = Faulty(classifier.module, fault, batch)
        classifier = Classifier(module, mean=[0.4], std=[0.3], name="small")
    return open_subject(small_spec(sweep="reference" if fault else "auto"), classifier, data)


def busy_workers() -> list[int]:
    """Processes of this user's Ray in which a unit is being computed, found by what they call themselves."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            name = (place / "cmdline").read_bytes().split(b"\0")[0]
            same = os.stat(place / "ns" / "net").st_ino == os.stat("/proc/self/ns/net").st_ino
        except OSError:
            continue
        if name.startswith(b"ray::_execute") and same:
            found.append(int(place.name))
    return found


def kill_some(times: int, killed: list[int], computed: list[str], over: threading.Event) -> None:
    """Kill busy workers, never two without a unit done between: three would be the unit's fault."""
    draw, before = random.Random(0), -1
    while len(killed) < times and not over.wait(draw.uniform(0.0, 0.3)):
        workers = busy_workers()
        if workers and len(computed) > before:
            before = len(computed)
            os.kill(draw.choice(workers), signal.SIGKILL)
            killed.append(1)


@contextmanager
def opened(workers: int, strange: int) -> Iterator[Engine]:
    """Ray with so many workers; as several machines, some of which take other kernels, if asked for."""
    if not strange:
        with open_engine("ray", cores=workers) as engine:
            yield engine
        return
    os.environ |= {"RAY_AUTH_MODE": "disabled"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for place in range(workers + strange):
        kernels = {"ATEN_CPU_CAPABILITY": "default"} if place < strange else {}
        cluster.add_node(num_cpus=1, env_vars=kernels)
    try:
        with open_engine("ray", address=cluster.address) as engine:
            yield engine
    finally:
        cluster.shutdown()  # type: ignore


def shuffle_pending() -> None:
    """Hand units out in another order, as far as what they need allows."""
    in_order = Ledger.pending

    def pending(ledger: Ledger) -> list[Unit]:
        units = in_order(ledger)
        return random.Random(0).sample(units, len(units))

    Ledger.pending = pending  # type: ignore


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--neurons-per-unit", type=int, default=64)
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--fault", choices=["exit", "raise"])
    parser.add_argument("--strange", type=int, default=0, help="So many machines with another processor.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    subject = subject_of(asked.fault)
    units = make_plan(subject.selection, IMAGES, BATCH, neurons_per_unit=asked.neurons_per_unit)
    if asked.shuffled:
        shuffle_pending()
    asked.folder.mkdir(parents=True, exist_ok=True)
    if not (asked.folder / "run.db").exists():
        Ledger.create(asked.folder, subject.spec, units, environment(subject)).__exit__()
    computed: list[str] = []
    killed: list[int] = []
    over, failure = threading.Event(), ""
    with opened(asked.workers, asked.strange) as engine:

        def watched(subject: Subject, ledger: Ledger) -> Generator[Unit, None, None]:
            for unit in engine(subject, ledger):
                computed.append(unit.id)
                yield unit

        start = time.perf_counter()
        killer = threading.Thread(target=kill_some, args=(asked.kill, killed, computed, over))
        killer.start()
        try:
            run_subject(subject, output=asked.folder, force=False, engine=watched, progress=silent)
        except FragileNeuronsError as error:
            failure = f"{error.exit_code}: {error}"
        over.set()
        killer.join()
        seconds = time.perf_counter() - start
    print(json.dumps({"computed": computed, "killed": len(killed), "seconds": seconds, "failure": failure}))


if __name__ == "__main__":
    main()
