"""Architectures that this project brings itself."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


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
