"""Which channel is replaced on which image of a batch, and by what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from fragile_neurons.data.batches import SMALLEST_BATCH

PARTS = 16  # of a chunk's rows; the last chunk has no more than it needs, for few kernels few sizes


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a channel and an image of a batch: (pairs,) int64 both, channels in ascending order."""

    channels: torch.Tensor
    images: torch.Tensor

    @classmethod
    def of(cls, channels: Sequence[int], images: torch.Tensor) -> Pairs:
        """Each of these channels on each of these images."""
        each = torch.tensor(channels, device=images.device)
        return cls(each.repeat_interleave(len(images)), images.repeat(len(channels)))

    @classmethod
    def where(cls, channels: Sequence[int], asked: torch.Tensor) -> Pairs:
        """The pairs that are asked: (channels, n) bool."""
        rows, images = asked.nonzero(as_tuple=True)
        return cls(torch.tensor(channels, device=asked.device)[rows], images)

    def __len__(self) -> int:
        return len(self.channels)

    def chunk(self, start: int, size: int) -> Pairs:
        """So many pairs from `start` on, or those that are left."""
        return Pairs(self.channels[start : start + size], self.images[start : start + size])

    def padded(self, size: int) -> Pairs:
        """So many pairs, the last one again where there are no more."""
        if size <= len(self):
            return self
        rows = torch.arange(size, device=self.channels.device).clamp(max=len(self) - 1)
        return Pairs(self.channels[rows], self.images[rows])

    def runs(self) -> list[tuple[int, slice]]:
        """Each channel once, and where its pairs are."""
        channels = self.channels.cpu().numpy()
        edges = [0, *(np.flatnonzero(np.diff(channels)) + 1).tolist(), len(channels)]
        return [(int(channels[start]), slice(start, stop)) for start, stop in pairwise(edges)]


def in_a_row(images: torch.Tensor) -> torch.Tensor | slice:
    """The same selection as a slice where it is one: a slice copies nothing."""
    places = images.cpu().numpy()
    if (np.diff(places) != 1).any():
        return images
    return slice(int(places[0]), int(places[-1]) + 1)


def whole_runs(rows: int, images: int) -> int:
    """About so many rows: a multiple of the images or, if one is near, a divisor.

    Where every image is asked, a chunk then ends where a channel's images do.
    """
    if rows >= images:
        return rows // images * images
    divisors = (
        images // parts for parts in range(math.ceil(images / rows), images + 1) if images % parts == 0
    )
    found = next(divisors)
    return found if 2 * found >= rows else rows


def tail_rows(pairs: int, rows: int) -> int:
    """For fewer pairs than rows: as many sixteenths of the rows as hold them, if these are whole numbers."""
    part = rows // PARTS
    return rows if part < SMALLEST_BATCH or rows % PARTS else math.ceil(pairs / part) * part
