"""Convolutional networks drawn by hypothesis: everything that a sweep must see through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import fragile_neurons as fn

WIDTH = 8
BLOCKS = (
    "plain", "residual", "preactivated", "concatenated", "depthwise", "grouped", "squeezed", "functional",
    "reused", "normalised", "pooled", "shuffled", "twice", "dilated", "branched",
)  # fmt: skip
NORMS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.BatchNorm2d(WIDTH),
    lambda: nn.GroupNorm(2, WIDTH),
    lambda: nn.InstanceNorm2d(WIDTH, affine=True),
    nn.Identity,
)


class Block(nn.Module):
    """One way of wiring convolutions, of WIDTH channels in and out."""

    def __init__(self, kind: str, norm: int, relu: nn.Module) -> None:
        super().__init__()
        self.kind, self.relu = kind, relu
        groups = {"depthwise": WIDTH, "grouped": 2}.get(kind, 1)
        dilation = 2 if kind == "dilated" else 1
        self.conv1 = nn.Conv2d(
            WIDTH, WIDTH, 3, padding=dilation, dilation=dilation, groups=groups, bias=norm != 0
        )
        self.norm1, self.norm2 = NORMS[norm](), NORMS[norm]()
        self.conv2 = nn.Conv2d(2 * WIDTH if kind in ("concatenated", "branched") else WIDTH, WIDTH, 1)
        self.squeeze, self.excite = nn.Conv2d(WIDTH, 2, 1), nn.Conv2d(2, WIDTH, 1)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1) if norm % 2 else nn.AvgPool2d(3, 1, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._forward(x)
        return result

    def _forward(self, x: torch.Tensor) -> Any:
        kind = self.kind
        if kind == "preactivated":
            return self.conv2(functional.relu(self.norm2(self.conv1(self.relu(self.norm1(x)))))) + x
        h = self.norm1(self.conv1(x))
        if kind == "twice":
            return torch.tanh(self.conv1(torch.tanh(h)))
        h = functional.leaky_relu(h, 0.1) if kind == "functional" else self.relu(h)
        if kind == "residual":
            h = self.norm2(self.conv2(h))
            h += x
            return self.relu(h)
        if kind == "concatenated":
            return self.conv2(torch.cat([h, x], dim=1))
        if kind == "branched":
            left, right = h.chunk(2, dim=1)
            return self.conv2(torch.cat([right, x, left], dim=1))
        if kind == "squeezed":
            gate = self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(h, 1))))
            return h * torch.sigmoid(gate)
        if kind == "shuffled":
            n, channels, height, width = h.size()
            h = h.view(n, 2, channels // 2, height, width).transpose(1, 2).contiguous()
            return self.conv2(h.view(n, channels, height, width))
        if kind == "pooled":
            return self.conv2(self.pool(h))
        if kind == "reused":
            return self.relu(self.conv2(self.relu(self.norm2(self.conv2(h)))))
        return functional.hardtanh(self.norm2(self.conv2(h)), -2.0, 2.0)


class Drawn(nn.Module):
    """A stem, blocks, and one of three heads."""

    def __init__(self, blocks: list[tuple[str, int]], head: str, *, inplace: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=inplace)
        self.stem = nn.Conv2d(2, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(Block(kind, norm, self.relu) for kind, norm in blocks)
        self.head = head
        self.fc1 = nn.Linear(WIDTH if head == "mean" else WIDTH * 9, 6)
        self.fc2 = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        h = self.relu(self.stem(images))
        for block in self.blocks:
            h = block(h)
        if self.head == "mean":
            h = h.mean(dim=(2, 3))
        else:
            h = functional.max_pool2d(h, 2)
            h = h.flatten(1) if self.head == "flat" else h.view(h.size(0), -1)
        logits: torch.Tensor = self.fc2(torch.relu(self.fc1(h)))
        return logits


@st.composite
def classifiers(draw: st.DrawFn) -> fn.Classifier:
    """A network with weights and norm statistics of its own, in evaluation mode; images are 2 x 6 x 6."""
    blocks = draw(st.lists(st.tuples(st.sampled_from(BLOCKS), st.integers(0, 3)), min_size=1, max_size=4))
    head = draw(st.sampled_from(["mean", "flat", "view"]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    module = Drawn(blocks, head, inplace=draw(st.booleans()))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.uniform_(part.running_mean, -0.3, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 2.0)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    classifier = fn.Classifier(module, mean=[0.4, 0.5], std=[0.3, 0.2]).eval()
    try:
        classifier(torch.rand(2, 2, 6, 6, requires_grad=True)).sum().backward()
    except RuntimeError:  # an activation in place took what its own gradient needs: no attack can run
        reject()
    return classifier
