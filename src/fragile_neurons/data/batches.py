"""Fixed batches: which images share a batch depends on the data and its size alone.

Convolutions of other batch sizes take other kernels and round differently, so every batch has the
same number of rows: the last one is filled up with the first images again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fragile_neurons.data.images import ImageData

SMALLEST_BATCH = 4  # one to three rows take other kernels than larger batches


@dataclass(frozen=True)
class Batch:
    """Some images on their device; only the first `count` rows are wanted, the rest are filling.

    positions: (rows,) places in the data, filling included.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions: npt.NDArray[np.int64]
    count: int


def whole_batches(images: int, at_least: int, batch_size: int) -> int:
    """The smallest number of images in whole batches that is at least so many, or all of them."""
    return min(images, math.ceil(at_least / batch_size) * batch_size)


def batches(
    data: ImageData, batch_size: int, device: torch.device, start: int = 0, stop: int | None = None
) -> Iterator[Batch]:
    """The batches that hold images start to stop; `start` is a multiple of the batch size."""
    stop = len(data) if stop is None else stop
    rows = max(SMALLEST_BATCH, min(batch_size, len(data)))
    for first in range(start, stop, rows):
        positions = np.arange(first, first + rows) % len(data)
        images, labels = data[positions]
        yield Batch(
            images.to(device),
            labels.to(device),
            positions,
            count=min(rows, stop - first),
        )
