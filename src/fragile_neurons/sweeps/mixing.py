"""The first layer that mixes channels: its output follows from the change of one channel alone."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from fragile_neurons.data.batches import SMALLEST_BATCH
from fragile_neurons.sweeps.channelwise import Place
from fragile_neurons.sweeps.pairs import Pairs, in_a_row


class Mixing:
    """A convolution or linear layer after one channel of its input has changed.

    before, after: its input, (n, ...), as it is and with every channel replaced, of which each pair
    takes one. The layer is linear, so its output is the whole network's plus (after - before) of
    that channel times the weights that read it.
    """

    def __init__(self, layer: nn.Module, place: Place, before: torch.Tensor, after: torch.Tensor) -> None:
        self.layer, self.place = layer, place
        self._found: torch.Tensor | None = None
        self._windows: torch.Tensor | None = None
        output: torch.Tensor = layer(before)
        change = (after - before).to(output.dtype)
        if isinstance(layer, nn.Conv2d):
            padding = layer._reversed_padding_repeated_twice
            if any(padding):
                mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
                change = functional.pad(change, padding, mode=mode)
            self.change = change.movedim(1, 0).contiguous()  # (channels, n, height, width)
            weight = layer.weight.to(output.dtype)
            self.weight = weight.movedim(0, -1).flatten(1, 2).contiguous()  # (channels, taps, outputs)
            self.output = output.movedim(1, -1)
        else:
            assert isinstance(layer, nn.Linear)
            width = place.width
            channels = torch.unflatten(change, -1, (-1, width)).movedim(-2, 0)
            self.change = channels.contiguous()  # (channels, n, ..., width)
            weight = layer.weight.to(output.dtype)
            self.weight = torch.unflatten(weight.t(), 0, (-1, width)).contiguous()
            self.output = output

    def rows(self, pairs: Pairs, size: int) -> torch.Tensor:
        """So many rows: the layer's output for each pair, the last again where there are no more pairs.

        The caller may overwrite them, until the next call.
        """
        if self._found is None or len(self._found) != size:
            self._found = self.output.new_empty(size, *self.output.shape[1:])
        found = self._found
        for channel, run in pairs.runs():
            wanted = pairs.images[run]
            few = len(wanted) < SMALLEST_BATCH
            images = in_a_row(wanted.repeat(SMALLEST_BATCH) if few else wanted)
            base, change = self.output[images], self.change[channel][images]
            flat = base.reshape(-1, base.shape[-1])
            out = torch.empty_like(flat) if few else found[run].view(flat.shape)
            torch.addmm(flat, self._taps(change, base), self.weight[channel], out=out)
            if few:
                found[run] = out.view(base.shape)[: len(wanted)]
        found[len(pairs) :] = found[len(pairs) - 1]
        return found.movedim(-1, 1) if isinstance(self.layer, nn.Conv2d) else found

    def _taps(self, change: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """What each output of the layer reads of the channel: (outputs, taps)."""
        if not isinstance(self.layer, nn.Conv2d):
            return change.reshape(-1, self.place.width)
        stride, dilation, shape = self.layer.stride, self.layer.dilation, self.layer.kernel_size
        image, row, column = change.stride()
        windows = change.as_strided(
            (*shape, len(change), *output.shape[1:3]),
            (dilation[0] * row, dilation[1] * column, image, stride[0] * row, stride[1] * column),
            change.storage_offset(),
        )
        # copied tap by tap: rows of pixels lie together, the taps of one output do not
        if self._windows is None or self._windows.shape != windows.shape:
            self._windows = torch.empty_like(windows, memory_format=torch.contiguous_format)
        return self._windows.copy_(windows).view(shape[0] * shape[1], -1).t()
