"""Trains, analyses, evaluates and hardens what is listed here, and keeps the small files of each run.

python docs/study/study.py [NETWORK ...]

A run counts as done when its files are kept here, so a sitting goes on where the last one ended, on any
machine. A network's weights are not kept: they are trained anew where a run still needs them or the options
of the training have changed, and if their checksum has become another one, all of the network's runs are
made again. What is in no list is deleted.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fragile_neurons.cli.specs import specs_in
from fragile_neurons.errors import InputError
from fragile_neurons.runs.spec import Spec, canonical_sha256, default_threads

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRAINED = ROOT / "trained" / "study"
RUNS = ROOT / "runs" / "study"
COMMANDS = ("analyze", "evaluate", "harden")


def trainings() -> dict[str, list[str]]:
    """The options of each training, by name of the network it makes."""
    lines = [shlex.split(line) for line in (HERE / "train.txt").read_text(encoding="utf-8").splitlines()]
    return {Path(options[-1]).name: options for options in lines}


def listed() -> dict[str, list[Spec]]:
    """The runs of each network."""
    found: dict[str, list[Spec]] = defaultdict(list)
    for command in COMMANDS:
        for spec in specs_in(command, HERE / f"{command}.toml"):
            found[network(spec)].append(spec)
    return found


def network(spec: Spec) -> str:
    """A bundled network's name, or that of the folder of its weights."""
    return Path(spec.weights).parent.name if spec.weights else spec.model


def run_name(spec: Spec) -> str:
    """What its folder is called."""
    options = spec.model_dump()
    which = [options[name] for name in ("rule", "layer") if name in options]
    return "-".join([network(spec), spec.command, *which])


def read_card(place: Path, name: str) -> dict[str, Any] | None:
    """The card of a network; None if there is none, or if it was trained by other options than are listed."""
    if not place.exists():
        return None
    found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    asked, done = (
        dict(zip(words[::2], words[1::2], strict=True))
        for words in (trainings()[name], shlex.split(found["command"])[2:])
    )
    del asked["--output"]
    return found if asked.items() <= done.items() else None


def trained(spec: Spec) -> str | None:
    """The checksum of the network's weights as trained last; None for a bundled one, or if never."""
    name = network(spec)
    found = read_card(HERE / "cards" / f"{name}.json", name) if spec.weights else None
    return str(found["weights_sha256"]) if found else None


def is_kept(spec: Spec) -> bool:
    """Whether the run's files are here, and of these weights."""
    try:
        (kept,) = specs_in(spec.command, HERE / "runs" / run_name(spec) / "spec.toml")
    except InputError:  # none, or damaged
        return False
    same = not spec.weights or (kept.found and kept.found.weights_sha256) == trained(spec)
    return same and kept.model_copy(update={"found": None}) == spec


def left_of(specs: Sequence[Spec]) -> list[Spec]:
    """Those to be run; what is kept under their names is of other options or weights, and deleted."""
    left = [spec for spec in specs if not is_kept(spec)]
    for spec in left:
        shutil.rmtree(HERE / "runs" / run_name(spec), ignore_errors=True)
    return left


def keep(source: Path, target: Path) -> None:
    """Copy a text, with the paths of this project relative to it: they are the same on every machine."""
    target.parent.mkdir(parents=True, exist_ok=True)
    text = source.read_text(encoding="utf-8").replace(f"{ROOT}/", "")
    target.write_text(text, encoding="utf-8")


def keep_run(source: Path, name: str) -> None:
    """Keep the small files of a finished run, the spec last: it says that the others are there."""
    for file in ("neurons.csv", "summary.json", "spec.toml"):
        if (source / file).exists():
            keep(source / file, HERE / "runs" / name / file)


class Study:
    """Networks at work, each in its own processes, which a signal stops: they store what they are at."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()
        self._starting = threading.RLock()

    def stop(self, *_: object) -> None:
        """Begin nothing more and have what runs end soon; asked a second time, at once."""
        with self._starting:
            self._stopped.set()
            for process in self._running:
                process.terminate()

    def finish(self, name: str, specs: Sequence[Spec]) -> bool:
        """Do what is left of one network; whether nothing is then."""
        left = left_of(specs)
        training = trainings().get(name)
        if left and training:
            card = TRAINED / name / "card.json"
            if card.exists() and not read_card(card, name):
                shutil.rmtree(card.parent)
            if not self.ran(f"{name}-train", ["train", *training, "--threads", "1"]):
                return False
            keep(card, HERE / "cards" / f"{name}.json")
            left = left_of(specs)
        ended = [self._finish_run(spec) for spec in left]
        return all(ended)

    def _finish_run(self, spec: Spec) -> bool:
        name = run_name(spec)
        folder = RUNS / f"{name}-{canonical_sha256([spec.digest, trained(spec)])[:8]}"
        RUNS.mkdir(parents=True, exist_ok=True)
        Path(f"{folder}.toml").write_text(spec.to_toml(), encoding="utf-8")
        if not self.ran(name, [spec.command, "--spec", f"{folder}.toml", "--output", str(folder)]):
            return False
        keep_run(folder, name)
        return True

    def ran(self, name: str, command: Sequence[str]) -> bool:
        """Whether a command of fragile-neurons came to its end; it writes to a log beside the runs."""
        RUNS.mkdir(parents=True, exist_ok=True)
        log = RUNS / f"{name}.log"
        start = time.monotonic()
        with log.open("ab") as file, self._starting:
            if self._stopped.is_set():
                return False
            process = subprocess.Popen(
                ["fragile-neurons", *command], stdout=file, stderr=file, start_new_session=True
            )
            self._running.add(process)
            print(f"{name}: begun, see {log.relative_to(ROOT)}", flush=True)
        code = process.wait()
        with self._starting:
            self._running.discard(process)
            outcome = "done" if code == 0 else f"not done, exit code {code}"
            print(f"{name}: {outcome} after {(time.monotonic() - start) / 60:.0f} min", flush=True)
        return code == 0


def main() -> None:
    """Work on as many networks at once as there are cores, one thread each."""
    os.chdir(ROOT)  # the lists name weights by their place there
    networks = listed()
    asked = sys.argv[1:] or list(networks)
    if unknown := sorted(set(asked) - set(networks)):
        sys.exit(f"error: not of the study: {', '.join(unknown)}\n  allowed: {', '.join(networks)}")
    names = {run_name(spec) for specs in networks.values() for spec in specs}
    for folder in HERE.glob("runs/*"):
        if folder.name not in names:
            shutil.rmtree(folder)
    study = Study()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, study.stop)
    for data in sorted({spec.data for name in asked for spec in networks[name] if not is_kept(spec)}):
        if not study.ran(f"data-{data}", ["data", "fetch", data]):
            sys.exit(f"error: {data} is not there, and nothing was begun")
    with ThreadPoolExecutor(default_threads()) as pool:
        ended = list(pool.map(study.finish, asked, [networks[name] for name in asked]))
    left = [name for name, end in zip(asked, ended, strict=True) if not end]
    if left:
        sys.exit(f"left: {', '.join(left)}\n  fix:     the same command goes on with them")
    print("the study is complete" if len(asked) == len(networks) else "these networks are complete")


if __name__ == "__main__":
    main()
