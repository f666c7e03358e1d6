"""The first layer that mixes channels: its output follows from the change of one channel alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from fragile_neurons.data.batches import SMALLEST_BATCH
from fragile_neurons.sweeps.channelwise import Place
from fragile_neurons.sweeps.pairs import Pairs, in_a_row


class Mixing:
    """A convolution or linear layer after one channel of its input has changed.

    change: of its input, (n, ...), with every channel replaced, of which each pair takes one. output: the
    whole network's. halved: whether its maps are wanted after max-pooling of 2 x 2, as `HalvedMaps` does it.
    The layer is linear, so its output is the whole network's plus the change of that channel times the
    weights that read it.
    """

    def __init__(
        self, layer: nn.Module, place: Place, change: torch.Tensor, output: torch.Tensor, *, halved: bool
    ) -> None:
        self.layer, self.place, self.side = layer, place, 2 if halved else 1
        change = change.to(output.dtype)
        if isinstance(layer, nn.Conv2d):
            self.change = _padded(layer, change.movedim(1, 0))  # (channels, n, height, width)
            weight = layer.weight.to(output.dtype)
            self.weight = weight.movedim(0, -1).flatten(1, 2).contiguous()  # (channels, taps, outputs)
            self.output = _corners(output.movedim(1, -1), self.side)  # (corners, n, height, width, outputs)
        else:
            assert isinstance(layer, nn.Linear)
            width = place.width
            channels = torch.unflatten(change, -1, (-1, width)).movedim(-2, 0)
            self.change = channels.contiguous()  # (channels, n, ..., width)
            weight = layer.weight.to(output.dtype)
            self.weight = torch.unflatten(weight.t(), 0, (-1, width)).contiguous()
            self.output = output.unsqueeze(0)
        self._found = self._corner = self._windows = output.new_empty(0)

    def rows(self, pairs: Pairs, size: int) -> torch.Tensor:
        """So many rows: the layer's output for each pair, the last again where there are no more pairs.

        The caller may overwrite them, until the next call.
        """
        found = self._found = _with_shape(self._found, (size, *self.output.shape[2:]))
        for channel, run in pairs.runs():
            wanted = pairs.images[run]
            few = len(wanted) < SMALLEST_BATCH
            images = in_a_row(wanted.repeat(SMALLEST_BATCH) if few else wanted)
            change, weight = self.change[channel], self.weight[channel]
            change = change[images] if isinstance(images, slice) else change.index_select(0, images)
            out = found.new_empty(len(change), *found.shape[1:]) if few else found[run]
            for corner, taps in enumerate(self._taps(change)):
                sums = out
                if corner:
                    sums = self._corner = _with_shape(self._corner, out.shape)
                _add_product(self.output[corner], images, taps, weight, out=sums)
                if corner:
                    torch.maximum(out, sums, out=out)
            if few:
                found[run] = out[: len(wanted)]
        found[len(pairs) :] = found[len(pairs) - 1]
        return found.movedim(-1, 1) if isinstance(self.layer, nn.Conv2d) else found

    def _taps(self, change: torch.Tensor) -> torch.Tensor:
        """What each output of the layer reads of the channel: (corners, outputs, taps)."""
        if not isinstance(self.layer, nn.Conv2d):
            return change.reshape(1, -1, self.place.width)
        shape, side = self.layer.kernel_size, self.side
        image, *steps = change.stride()
        down, across = (step * stride for step, stride in zip(steps, self.layer.stride, strict=True))
        windows = change.as_strided(
            (side, side, *shape, len(change), *self.output.shape[2:4]),
            (
                *(down, across),
                *(step * dilation for step, dilation in zip(steps, self.layer.dilation, strict=True)),
                *(image, side * down, side * across),
            ),
            change.storage_offset(),
        )
        # copied tap by tap: rows of pixels lie together, the taps of one output do not
        self._windows = _with_shape(self._windows, windows.shape).copy_(windows)
        return self._windows.view(side * side, shape[0] * shape[1], -1).transpose(1, 2)


def _padded(layer: nn.Conv2d, maps: torch.Tensor) -> torch.Tensor:
    """Maps, (..., height, width), with the layer's padding around them, contiguous."""
    left, right, top, bottom = padding = layer._reversed_padding_repeated_twice
    if layer.padding_mode != "zeros":
        return functional.pad(maps, padding, mode=layer.padding_mode).contiguous()
    height, width = maps.shape[-2:]
    # laid out and padded in one copy
    found = maps.new_zeros(*maps.shape[:-2], top + height + bottom, left + width + right)
    found[..., top : top + height, left : left + width] = maps
    return found


def _corners(maps: torch.Tensor, side: int) -> torch.Tensor:
    """(corners, n, height, width, channels) of (n, height, width, channels): what pooling compares."""
    height, width = (length // side for length in maps.shape[1:3])
    whole = maps[:, : side * height, : side * width]
    blocks = whole.reshape(len(maps), height, side, width, side, -1)
    return blocks.permute(2, 4, 0, 1, 3, 5).flatten(0, 1).contiguous()


def _add_product(
    rows: torch.Tensor,
    which: torch.Tensor | slice,
    taps: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Some of the rows plus taps times weights."""
    flat = out.view(-1, out.shape[-1])
    if isinstance(which, slice):
        torch.addmm(rows[which].view(flat.shape), taps, weight, out=flat)
    else:
        torch.index_select(rows, 0, which, out=out)
        flat.addmm_(taps, weight)


def _with_shape(buffer: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The buffer, or a new one if it has another shape."""
    return buffer if buffer.shape == torch.Size(shape) else buffer.new_empty(*shape)
