"""Runs of the small network on Ray; a process of its own, so that a test can give it a network of its own.

    python tests/faults/on_ray.py FOLDER --workers 2 [--subject learned] [--neurons-per-unit 1] [--kill 3]

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
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import BATCH, EPSILON, IMAGES, small_images, small_network, small_spec, small_subject

from fragile_neurons import Classifier, FragileNeuronsError
from fragile_neurons.runs.engines import Engine, open_engine
from fragile_neurons.runs.environment import environment
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import Unit, make_plan
from fragile_neurons.runs.remaining import silent
from fragile_neurons.runs.spec import HardenSpec
from fragile_neurons.runs.subject import Subject, open_spec, open_subject, open_to_harden
from fragile_neurons.workflows import run_subject

OWN = Path(__file__).with_name("of_their_own.py")


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


def faulty_subject(fault: str) -> Subject:
    classifier, data = small_network(), small_images()
    batch = classifier.normalise(data[BATCH : 2 * BATCH][0])
    module = Faulty(classifier.module, fault, batch)
    faulty = Classifier(module, mean=[0.4], std=[0.3], name="small")
    return open_subject(small_spec(sweep="reference"), faulty, data)


def sampled_subject() -> Subject:
    """Of more images than a pilot takes."""
    images = small_images(640)
    return open_subject(small_spec(sweep="sampled", limit=640, batch_size=64), small_network(), images)


def own_subject() -> Subject:
    return open_spec(small_spec(model=f"{OWN}:network", data="mnist", limit=64, batch_size=32))


def subject_to_evaluate() -> Subject:
    return small_subject(command="evaluate", attacks=["fgsm", "pgd", f"{OWN}:brighter"])


def subject_to_harden(rule: str) -> Subject:
    options = {"rule": rule, "epsilon": EPSILON, "alternatives": False, "steps": 4, "budget": 0.1}
    spec = small_spec(command="harden", batch_size=IMAGES // 2, **options)
    assert isinstance(spec, HardenSpec)
    splits = {split: small_images(seed=seed, split=split) for seed, split in enumerate(("val", "train"), 1)}
    return open_to_harden(spec, small_network(), test=small_images(), **splits)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "analyze": small_subject,
    "sampled": sampled_subject,
    "own": own_subject,
    "evaluate": subject_to_evaluate,
    "proportional": partial(subject_to_harden, "proportional"),
    "learned": partial(subject_to_harden, "learned"),
    "exit": partial(faulty_subject, "exit"),
    "raise": partial(faulty_subject, "raise"),
}


def busy_workers() -> list[tuple[int, str]]:
    """Processes of this user's Ray that are at a unit, and which: it is what they call themselves."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            name = (place / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            same = os.stat(place / "ns" / "net").st_ino == os.stat("/proc/self/ns/net").st_ino
        except OSError:
            continue
        if name.startswith("ray::unit ") and same:
            found.append((int(place.name), name))
    return found


def kill_some(times: int, killed: list[str], over: threading.Event) -> None:
    """Kill busy workers, but none at a unit that would not be tried again."""
    from fragile_neurons.runs.engines.ray import RETRIES  # imports Ray, which reads the environment

    draw = random.Random(0)
    while len(killed) < times and not over.wait(draw.uniform(0.0, 0.3)):
        for worker, unit in draw.sample(found := busy_workers(), len(found)):
            if killed.count(unit) < RETRIES:
                os.kill(worker, signal.SIGKILL)
                killed.append(unit)
                break


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
    parser.add_argument("--subject", choices=SUBJECTS, default="analyze")
    parser.add_argument("--neurons-per-unit", type=int)
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--stop-after", type=int, help="Units, as if by Ctrl-C.")
    parser.add_argument("--strange", type=int, default=0, help="So many machines with another processor.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    subject = SUBJECTS[asked.subject]()
    if asked.shuffled:
        shuffle_pending()
    if asked.neurons_per_unit:
        units = make_plan(subject.selection, IMAGES, BATCH, neurons_per_unit=asked.neurons_per_unit)
        asked.folder.mkdir(parents=True, exist_ok=True)
        Ledger.create(asked.folder, subject.spec, units, environment(subject)).__exit__()
    computed: list[str] = []
    killed: list[str] = []
    over, failure = threading.Event(), ""
    with opened(asked.workers, asked.strange) as engine:

        def watched(subject: Subject, ledger: Ledger) -> Generator[Unit, None, None]:
            with closing(engine(subject, ledger)) as units:
                for unit in units:
                    computed.append(unit.id)
                    yield unit
                    if len(computed) == asked.stop_after:
                        raise KeyboardInterrupt

        start = time.perf_counter()
        killer = threading.Thread(target=kill_some, args=(asked.kill, killed, over))
        killer.start()
        try:
            run_subject(subject, output=asked.folder, force=False, engine=watched, progress=silent)
        except FragileNeuronsError as error:
            failure = f"{error.exit_code}: {error}"
        except KeyboardInterrupt:
            failure = "stopped"
        over.set()
        killer.join()
        seconds = time.perf_counter() - start
    print(json.dumps({"computed": computed, "killed": len(killed), "seconds": seconds, "failure": failure}))


if __name__ == "__main__":
    main()
