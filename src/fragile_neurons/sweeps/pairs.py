"""Which channel is replaced on which image of a batch, and by what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


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

    def __len__(self) -> int:
        return len(self.channels)

    def chunk(self, start: int, size: int) -> Pairs:
        """So many pairs from `start` on, the last one again where there are no more."""
        rows = torch.arange(start, start + size, device=self.channels.device).clamp(max=len(self) - 1)
        return Pairs(self.channels[rows], self.images[rows])

    def runs(self) -> list[tuple[int, slice]]:
        """Each channel once, and where its pairs are."""
        channels, counts = torch.unique_consecutive(self.channels, return_counts=True)
        ends = counts.cumsum(0)
        return [
            (channel, slice(end - count, end))
            for channel, end, count in zip(channels.tolist(), ends.tolist(), counts.tolist(), strict=True)
        ]


def in_a_row(images: torch.Tensor) -> torch.Tensor | slice:
    """The same selection as a slice where it is one: a slice copies nothing."""
    first, last = int(images[0]), int(images[-1])
    if last - first + 1 != len(images) or (images.diff() != 1).any():
        return images
    return slice(first, last + 1)
