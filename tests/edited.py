"""Networks edited by hand, against which interventions are held."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from fragile_neurons import Classifier


def without_channels(classifier: Classifier, layer: str, channels: Sequence[int]) -> Classifier:
    """A copy with the channels' kernels and biases at zero."""
    edited = copy.deepcopy(classifier)
    module = edited.module.get_submodule(layer)
    assert isinstance(module, nn.Conv2d)
    assert module.bias is not None
    with torch.no_grad():
        module.weight[list(channels)] = 0
        module.bias[list(channels)] = 0
    return edited
