"""A small network, its images and its run: what tests compute again and again, also in other processes."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from fitted import fitted
from torch import nn

from fragile_neurons import Classifier, ImageData, Run
from fragile_neurons.runs.remaining import silent
from fragile_neurons.runs.spec import Spec, make_spec
from fragile_neurons.runs.subject import Subject, open_subject, threads
from fragile_neurons.workflows import run_subject

CONTRACT_FILES = {
    "spec.toml",
    "run.db",
    "summary.json",
    "neurons.csv",
    "neurons.parquet",
    "targeting.parquet",
    "cumulative.parquet",
    "images.parquet",
    "summary.md",
    "report.html",
    "examples.npz",
}
NEURONS, IMAGES, EPSILON = 4, 40, "0.05"
BATCH = 8  # 40 images are five batches
UNITS = 23
"""2 cheap checks, predictions and disturbances of 2 spans, drops, patches, curves of 5, orders, examples."""


def small_images(count: int = IMAGES, *, seed: int = 0, split: str = "test") -> ImageData:
    """Random images, 1 x 8 x 8, of three classes: a blob whose place depends on the class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = generator.integers(0, 120, (count, 1, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label : 2 * label + 3, 1:7] += 100
    return ImageData(images, labels.astype(np.int64), ("one", "two", "three"), name="blobs", split=split)


def small_network() -> Classifier:
    """conv1 (4 channels), norm, relu, pool, conv2 (6 channels), relu, fc: fitted to the small images."""
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
    with threads(1):  # the same weights in every process
        return fitted(classifier, small_images(), steps=12, rate=3e-3)


def small_spec(**changes: object) -> Spec:
    options: dict[str, object] = {
        "model": "small",
        "data": "blobs",
        "limit": IMAGES,
        "epsilons": [EPSILON],
        "batch_size": BATCH,
        "threads": 1,
    }
    return make_spec(**options | changes)


def small_subject(**changes: object) -> Subject:
    """The small network and its images, opened for a spec."""
    return open_subject(small_spec(**changes), small_network(), small_images())


def finish(subject: Subject, folder: Path, *, force: bool = False) -> Run:
    return run_subject(subject, output=folder, force=force, progress=silent)
