"""What a worker needs of a run, in Ray's object store: put there once, fetched when it is asked for."""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from fragile_neurons.data.images import ImageData
from fragile_neurons.runs.subject import Hardening, Subject
from fragile_neurons.sweeps.choice import choose_way

SHARD = 256  # images: what a worker fetches at once


def share(subject: Subject) -> Subject:
    """What a worker needs of a subject: images are fetched when they are asked for, the way is found anew."""
    hardening = subject.hardening
    if hardening is not None:
        hardening = Hardening(
            fitting=_store(hardening.fitting),
            choosing=_store(hardening.choosing),
            scoring=None if hardening.scoring is None else share(hardening.scoring),
            scratch=hardening.scratch.absolute(),
        )
    return replace(subject, data=_store(subject.data), hardening=hardening, way=None, designs={}, _swept={})


def _store(data: ImageData) -> ImageData:
    shards = tuple(
        ray.put(np.ascontiguousarray(data.images[start : start + SHARD]))
        for start in range(0, len(data), SHARD)
    )
    assert data.sha256  # known from here on: a worker would fetch everything for it
    stored = copy.copy(data)
    object.__setattr__(stored, "images", StoredImages(shards, data.images.shape, data.images.dtype))
    return stored


@dataclass(frozen=True)
class StoredImages:
    """Images in Ray's object store, SHARD to an object; slices and positions give arrays."""

    shards: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        places = np.arange(len(self))[rows]
        found = np.empty((len(places), *self.shape[1:]), self.dtype)
        for shard in np.unique(places // SHARD):
            here = places // SHARD == shard
            found[here] = ray.get(self.shards[shard])[places[here] % SHARD]
        return found


def ready(subject: Subject) -> Subject:
    """A shared subject as a worker can compute with it."""
    hardening = subject.hardening
    if hardening is not None:
        here = hardening.scratch.is_dir()  # the run folder, where this machine sees it
        scratch = hardening.scratch if here else _own_scratch()
        scoring = None if hardening.scoring is None else ready(hardening.scoring)
        hardening = replace(hardening, scoring=scoring, scratch=scratch)
    found = subject.spec.found
    way = None
    if found is not None and found.sweep is not None:
        way = choose_way(
            subject.classifier, subject.selection.sites, subject.selection.images, found.sweep
        ).way
    return replace(subject, hardening=hardening, way=way)


def _own_scratch() -> Path:
    """A folder of this process, for the checkpoints of fits."""
    folder = tempfile.mkdtemp(prefix="fragile-neurons-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
