"""Small networks and images that every test can have."""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from fitted import fitted
from torch import nn

from fragile_neurons import Classifier, ImageData, InputError
from fragile_neurons.data.catalogue import find_dataset


def pytest_configure() -> None:
    """A core for each worker: two that share their cores wait for each other's threads most of the time."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
        torch.set_num_threads(1)


@pytest.fixture
def small_data() -> ImageData:
    """40 random images, 1 x 8 x 8, of three classes: a blob whose place depends on the class."""
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 3
    images = generator.integers(0, 120, (40, 1, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label : 2 * label + 3, 1:7] += 100
    return ImageData(images, labels.astype(np.int64), ("one", "two", "three"), name="blobs")


@pytest.fixture
def small_classifier(small_data: ImageData) -> Classifier:
    """conv1 (4 channels), norm, relu, pool, conv2 (6 channels), relu, fc: fitted to the small data."""
    torch.manual_seed(0)
    module = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 4, 3, padding=1),
            norm1=nn.BatchNorm2d(4),
            relu1=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(2),
            conv2=nn.Conv2d(4, 6, 3, padding=1),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc=nn.Linear(6 * 16, 3),
        )
    )
    classifier = Classifier(module, mean=[0.4], std=[0.3], name="small")
    return fitted(classifier, small_data, steps=12, rate=3e-3)


@pytest.fixture(scope="session")
def cifar10() -> None:
    """Real CIFAR-10 on this machine; fetched if it is not, and skipped where no source can be reached."""
    try:
        with FileLock(Path(tempfile.gettempdir()) / "fragile-neurons-tests-cifar10.lock"):
            find_dataset("cifar10").fetch(print)
    except InputError as error:
        pytest.skip(str(error))
