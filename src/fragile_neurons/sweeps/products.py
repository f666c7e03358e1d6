"""Layers as products of matrices, where these take less time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import fx, nn
from torch.nn import functional

from fragile_neurons.sweeps.graph import Traced, layers_by_name

LARGEST = 1 << 24  # values of the matrices that stand for a convolution
FEWEST_CHANNELS = 128  # with which `Winograd` saves more than it adds
LEAST_JOINED = 0.75  # of pixels and outputs, with which `SmallMaps` saves more than its zeros cost

Matrix = Sequence[Sequence[float]]

S = math.sqrt(2)
KARATSUBA: tuple[Matrix, Matrix, Matrix] = (
    [[1, 1], [0, 1], [1, 0]],
    [[0, 1, 0], [0, -1, 1], [1, -1, 0]],
    [[1, 1, 0], [1, 0, 1]],
)
TOOM_COOK: tuple[Matrix, Matrix, Matrix] = (
    [
        [0, -5 / 2, 0, 1],
        [2 * S / 3, 4 / 3, -S / 3, -2 / 3],
        [-2 * S / 3, 4 / 3, S / 3, -2 / 3],
        [-S / 12, -1 / 12, S / 6, 1 / 6],
        [S / 12, -1 / 12, -S / 6, 1 / 6],
        [1, 0, -5 / 2, 0],
    ],
    [[1, 0, 0], [1, S / 2, 1 / 2], [1, -S / 2, 1 / 2], [1, S, 2], [1, -S, 2], [0, 0, 1]],
    [
        [1, 1, 1, 1, 1, 0],
        [0, S / 2, -S / 2, S, -S, 0],
        [0, 1 / 2, 1 / 2, 2, 2, 0],
        [0, S / 4, -S / 4, 2 * S, -2 * S, 1],
    ],
)
"""At the points 0, +-sqrt(1/2), +-sqrt(2) and infinity: of those that were tried the ones that err least."""

ALONG_AN_AXIS = {2: KARATSUBA, 4: TOOM_COOK}
"""By the pixels of a side: there, taps, back of `Winograd`."""


class QuickLinear(nn.Module):
    """A linear layer by `multiply`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return multiply(rows, self.linear.weight, self.linear.bias)


class StridedPixels(nn.Module):
    """A convolution of single pixels with a stride: a product of matrices over those that it reads."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        down, across = self.conv.stride
        pixels = maps.movedim(1, -1)[:, ::down, ::across]
        found = multiply(pixels.flatten(0, 2), self.conv.weight.flatten(1), self.conv.bias)
        return found.view(*pixels.shape[:3], -1).movedim(-1, 1)


class SmallMaps(nn.Module):
    """A convolution of maps so small that nearly every output reads every pixel: a product of matrices.

    size: height and width of the maps. Zeros stand where no tap joins a pixel to an output.
    """

    def __init__(self, conv: nn.Conv2d, size: Sequence[int]) -> None:
        super().__init__()
        axes = [_taps(conv, axis, side) for axis, side in enumerate(size)]
        self.size = _outputs(conv, size)
        weight = conv.weight.new_zeros(*self.size, conv.out_channels, *size, conv.in_channels)
        for ((top, row), down), ((left, column), across) in product(*(axis.items() for axis in axes)):
            weight[top, left, :, row, column] = conv.weight[:, :, down, across]
        weight = weight.flatten(0, 2).flatten(1)
        self.weight = nn.Parameter(weight, requires_grad=False)
        positions = math.prod(self.size)
        self.bias = None
        if conv.bias is not None:
            self.bias = nn.Parameter(conv.bias.repeat(positions), requires_grad=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        found = multiply(maps.movedim(1, -1).flatten(1), self.weight, self.bias)
        return found.view(len(found), *self.size, -1).movedim(-1, 1)


def _taps(conv: nn.Conv2d, axis: int, side: int) -> dict[tuple[int, int], int]:
    """Along an axis, which tap joins a place of the output to one of the input."""
    outputs, found = _outputs(conv, [side] * 2)[axis], {}
    for out, tap in product(range(outputs), range(conv.kernel_size[axis])):
        place = out * conv.stride[axis] - int(conv.padding[axis]) + tap * conv.dilation[axis]
        if 0 <= place < side:
            found[out, place] = tap
    return found


def _outputs(conv: nn.Conv2d, size: Sequence[int]) -> list[int]:
    """Height and width of the output."""
    assert not isinstance(conv.padding, str)
    return [
        (side + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
        for side, pad, dilation, taps, stride in zip(
            size, conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
        )
    ]


class Winograd(nn.Module):
    """A convolution by 3 x 3, with a bias and zeros around, of maps of 2 x 2 or 4 x 4 pixels: fewer products.

    Along an axis it is back @ ((taps @ kernel) * (there @ maps)), 3 products for 2 pixels and 6 for 4. Its
    roundings follow the largest pixel of a map; where pixels are alike they are up to 3 times oneDNN's.
    Source: Winograd 1980, Arithmetic Complexity of Computations; Lavin and Gray 2016, arXiv:1509.09308.
    """

    def __init__(self, conv: nn.Conv2d, side: int) -> None:
        super().__init__()
        assert conv.bias is not None
        kernels = conv.weight.detach().double()
        there, taps, back = (kernels.new_tensor(one) for one in ALONG_AN_AXIS[side])
        products = torch.einsum("pa,qb,oiab->pqoi", taps, taps, kernels).flatten(0, 2)
        self.bias, self.points = conv.bias, len(there) ** 2
        self.products = nn.Parameter(products.to(conv.weight)[..., None, None], requires_grad=False)
        self.there, self.back = (
            nn.Parameter(torch.kron(one, one).to(conv.weight), requires_grad=False) for one in (there, back)
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        pixels = maps.movedim(1, -1).flatten(1, 2)  # (n, pixels, channels)
        images = len(pixels)
        ready = torch.bmm(self.there.expand(images, -1, -1), pixels)  # (n, points, channels)
        # the images stand where pixels do: one map of as many, each group of channels a point
        one_map = ready.view(1, images, 1, -1).movedim(-1, 1)
        products = functional.conv2d(one_map, self.products, groups=self.points)
        products = products.movedim(1, -1).reshape(images, self.points, -1)
        found = torch.bmm(self.back.expand(images, -1, -1), products)
        return found.add_(self.bias).view(images, *maps.shape[2:], -1).movedim(-1, 1)


def multiply(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """torch.nn.functional.linear; by oneDNN where it may, which on some processors is faster than MKL."""
    if not is_plain(rows) or (torch.is_grad_enabled() and rows.requires_grad):
        return functional.linear(rows, weight, bias)
    bias = None if bias is None else bias.contiguous()  # its stride would not be looked at
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found


def is_plain(values: torch.Tensor) -> bool:
    """Whether oneDNN's operations are there, and for values like these."""
    return (
        hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
        and values.device.type == "cpu"
        and values.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def take_products(rest: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size], traced: Traced) -> None:
    """Let products of matrices do what they do in less time; shapes: of the nodes."""
    layers = layers_by_name(rest)
    for node in rest.graph.nodes:
        layer = layers.get(str(node.target)) if node.op == "call_module" else None
        found: nn.Module | None = None
        if isinstance(layer, nn.Linear):
            found = QuickLinear(layer)
        elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
            found = _product_for(layer, shapes[node.args[0]][1:], shapes[node][1:], traced)
        if found is not None:
            node.target = f"multiplied_{node.name}"
            rest.add_submodule(node.target, found)
    rest.delete_all_unused_submodules()
    rest.recompile()


def _product_for(conv: nn.Conv2d, before: torch.Size, after: torch.Size, traced: Traced) -> nn.Module | None:
    """What stands for a convolution of maps of these shapes, (channels, height, width), if anything does."""
    if conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.stride != (1, 1):
        return StridedPixels(conv)
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    if _suits_winograd(conv, before, after):
        return traced.make(Winograd, conv, before[1])
    joined = math.prod(len(_taps(conv, axis, side)) for axis, side in enumerate(before[1:]))
    few_zeros = joined >= LEAST_JOINED * before[1:].numel() * after[1:].numel()
    if few_zeros and before.numel() * after.numel() <= LARGEST:
        return traced.make(SmallMaps, conv, before[1:])
    return None


def _suits_winograd(conv: nn.Conv2d, before: torch.Size, after: torch.Size) -> bool:
    """Shapes as of `_product_for`."""
    channels, (height, width) = (before[0], after[0]), before[1:]
    shape = conv.kernel_size, conv.padding, conv.stride, conv.dilation
    if shape != ((3, 3), (1, 1), (1, 1), (1, 1)) or height != width or height not in ALONG_AN_AXIS:
        return False
    values = len(ALONG_AN_AXIS[height][0]) ** 2 * math.prod(channels)
    wide = min(channels) >= FEWEST_CHANNELS and values <= LARGEST
    # without a bias a sum over black pixels is exactly 0, and has to stay so: slopes change there
    return wide and conv.bias is not None and is_plain(conv.weight)


PRODUCTS = (QuickLinear, StridedPixels, SmallMaps, Winograd)
