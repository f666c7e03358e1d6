"""Architectures that this project brings itself."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional


def mnist_cnn() -> nn.Module:
    """The small network of the MNIST experiments: 1 x 28 x 28 -> 10 logits, 421,642 weights."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * 7 * 7, 128),
            relu3=nn.ReLU(),
            fc2=nn.Linear(128, 10),
        )
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters, as He et al. 2016 have it for CIFAR-10."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.stride = stride
        self.missing = channels - before

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(images)))))
        shortcut = images
        if self.missing:
            half = self.missing // 2
            shortcut = functional.pad(
                images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.missing - half)
            )
        result: torch.Tensor = self.relu2(out + shortcut)
        return result


def resnet20(classes: int = 10, channels: int = 3) -> nn.Module:
    """The ResNet-20 of He et al. 2016 for 32 x 32 images: 688 convolutional channels, 269,722 weights."""

    def stage(before: int, after: int, stride: int) -> nn.Module:
        blocks = [ResidualBlock(before, after, stride)]
        return nn.Sequential(*blocks, *(ResidualBlock(after, after, 1) for _ in range(2)))

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 16, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(16),
            relu=nn.ReLU(),
            layer1=stage(16, 16, 1),
            layer2=stage(16, 32, 2),
            layer3=stage(32, 64, 2),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(64, classes),
        )
    )
