"""Layers as products of matrices, where these take less time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import fx, nn
from torch.nn import functional

from fragile_neurons.sweeps.graph import Traced

LARGEST = 1 << 24  # values of the matrices that stand for a convolution
FEWEST_CHANNELS = 128  # with which `Winograd` saves more than it adds
LEAST_JOINED = 0.75  # of pixels and outputs, with which `SmallMaps` saves more than its zeros cost

Bilinear = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


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
    """A convolution of maps so small that most outputs read every pixel: one product of matrices.

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
    """A convolution by 3 x 3 of maps of 2 x 2 or 4 x 4 pixels, zeros around them, in fewer products.

    Along an axis it is back @ ((taps @ kernel) * (there @ maps)), 3 products for 2 pixels and 6 for 4. Its
    roundings are some times those of the sum itself: of 4 pixels 3 times after a ReLU, 7 before. Elsewhere
    than on the CPU in float32 it is the convolution.
    Source: Winograd 1980, Arithmetic Complexity of Computations; Lavin and Gray 2016, arXiv:1509.09308.
    """

    def __init__(self, conv: nn.Conv2d, side: int) -> None:
        super().__init__()
        there, taps, back = ALONG_AN_AXIS[side]
        kernels = conv.weight.detach().double()
        taps = taps.to(kernels.device)
        products = torch.einsum("pa,qb,oiab->pqoi", taps, taps, kernels).flatten(0, 2)
        self.conv, self.points = conv, len(there) ** 2
        self.products = nn.Parameter(products.to(conv.weight)[..., None, None], requires_grad=False)
        self.there, self.back = (
            nn.Parameter(torch.kron(one, one).to(conv.weight), requires_grad=False) for one in (there, back)
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor
        if not is_plain(maps):
            found = self.conv(maps)
            return found
        pixels = maps.movedim(1, -1).flatten(1, 2)  # (n, pixels, channels)
        images = len(pixels)
        ready = torch.bmm(self.there.expand(images, -1, -1), pixels)  # (n, points, channels)
        # the images stand where pixels do: one map of as many, each group of channels a point
        one_map = ready.view(1, images, 1, -1).movedim(-1, 1)
        products = functional.conv2d(one_map, self.products, groups=self.points)
        products = products.movedim(1, -1).reshape(images, self.points, -1)
        found = torch.bmm(self.back.expand(images, -1, -1), products)
        if self.conv.bias is not None:
            found.add_(self.conv.bias)
        return found.view(images, *maps.shape[2:], -1).movedim(-1, 1)


def _of_two() -> Bilinear:
    """Karatsuba's three products."""
    return (
        torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]).double(),
        torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 1.0], [1.0, -1.0, 0.0]]).double(),
        torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]).double(),
    )


def _of_four() -> Bilinear:
    """The products of polynomials at five points and at infinity, by Toom and Cook, transposed.

    Of the points that were tried these err least.
    """
    points = torch.tensor([0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)], dtype=torch.float64)

    def at_points(terms: int) -> torch.Tensor:
        powers = points[:, None] ** torch.arange(terms)
        return torch.cat([powers, torch.eye(terms, dtype=torch.float64)[-1:]])

    return torch.linalg.inv(at_points(6)).mT[:, 1:-1], at_points(3), at_points(4).mT


ALONG_AN_AXIS = {2: _of_two(), 4: _of_four()}
"""By the pixels of a side: there, taps, back."""


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
    modules = dict(rest.named_modules())
    for node in rest.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        product: nn.Module | None = None
        if type(layer) is nn.Linear and not (layer._forward_hooks or layer._forward_pre_hooks):
            product = QuickLinear(layer)
        elif isinstance(layer, nn.Conv2d):
            product = _product_for(layer, shapes[node.args[0]][1:], shapes[node][1:], traced)
        if product is not None:
            node.target = f"multiplied_{node.name}"
            rest.add_submodule(node.target, product)
    rest.delete_all_unused_submodules()
    rest.recompile()


def _product_for(conv: nn.Conv2d, before: torch.Size, after: torch.Size, traced: Traced) -> nn.Module | None:
    """What stands for a convolution of maps of these shapes, (channels, height, width), if anything does."""
    if conv.groups > 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    height, width = before[1:]
    if conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.stride != (1, 1):
        return StridedPixels(conv)
    shape = conv.kernel_size, conv.padding, conv.stride, conv.dilation
    if shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and height == width and height in ALONG_AN_AXIS:
        channels, points = (before[0], after[0]), len(ALONG_AN_AXIS[height][0]) ** 2
        if min(channels) >= FEWEST_CHANNELS and points * math.prod(channels) <= LARGEST:
            return traced.make(Winograd, conv, height)
    joined = math.prod(len(_taps(conv, axis, side)) for axis, side in enumerate(before[1:]))
    few_zeros = joined >= LEAST_JOINED * before[1:].numel() * after[1:].numel()
    if few_zeros and before.numel() * after.numel() <= LARGEST:
        return traced.make(SmallMaps, conv, before[1:])
    return None
