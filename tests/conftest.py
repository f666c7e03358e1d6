"""Small networks, images and runs that every test can have."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from small import small_images, small_network, small_spec

from fragile_neurons import Classifier, ImageData, InputError
from fragile_neurons.data.catalogue import find_dataset
from fragile_neurons.runs.engines import local
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.plan import Unit
from fragile_neurons.runs.remaining import silent
from fragile_neurons.runs.subject import Subject, open_subject
from fragile_neurons.workflows import run_subject


def pytest_configure() -> None:
    """A core for each worker: two that share their cores wait for each other's threads most of the time."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
        torch.set_num_threads(1)


@pytest.fixture
def small_data() -> ImageData:
    return small_images()


@pytest.fixture
def small_classifier() -> Classifier:
    return small_network()


@pytest.fixture
def subject(small_classifier: Classifier, small_data: ImageData) -> Subject:
    return open_subject(small_spec(), small_classifier, small_data)


@pytest.fixture(scope="module")
def kept() -> dict[str, Path]:
    return {}


@pytest.fixture
def finished(subject: Subject, kept: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small subject; computed once, so tests must not change it."""
    if "run" not in kept:
        folder = tmp_path_factory.mktemp("finished") / "run"
        run_subject(subject, output=folder, force=False, progress=silent)
        kept["run"] = folder
    return kept["run"]


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "own"))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Watch the engine: a list of the ids of computed units; raise `error` when `stop_at` are computed."""

    def watch(stop_at: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> list[str]:
        computed: list[str] = []

        def watched(subject: Subject, unit: Unit, *given: Any) -> dict[str, Any]:
            if len(computed) == stop_at:
                raise error
            computed.append(unit.id)
            return execute_unit(subject, unit, *given)

        monkeypatch.setattr(local, "execute_unit", watched)
        return computed

    return watch


@pytest.fixture(scope="session")
def cifar10() -> None:
    """Real CIFAR-10 on this machine; fetched if it is not, and skipped where no source can be reached."""
    try:
        with FileLock(Path(tempfile.gettempdir()) / "fragile-neurons-tests-cifar10.lock"):
            find_dataset("cifar10").fetch(print)
    except InputError as error:
        pytest.skip(str(error))
