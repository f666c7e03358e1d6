"""Where the numbers of a run come from: the versions and the arithmetic that decide their last digits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec

import torch
from torch import nn

from fragile_neurons.attacks.catalogue import attack_sha256
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.runs.spec import EvaluateSpec
from fragile_neurons.runs.subject import Subject, threads

EXTRAS = ("pyautoattack",)
PACKAGES = ("fragile-neurons", "torch", "torchvision", "numpy", "scipy")
ARITHMETIC = "arithmetic"
SHOWN, LONG = 12, 64  # letters: of a checksum
EXPLAINED = {ARITHMETIC: "what this processor computes, to the last bit"}


def environment(subject: Subject) -> dict[str, str]:
    """Versions by package, and a digest of what a tiny network and the run's own compute here.

    Processors take other kernels, which round differently: two machines may share a run only where these
    are the same.
    """
    attacks = subject.spec.attacks if isinstance(subject.spec, EvaluateSpec) else ()
    files = {name: attack_sha256(name) for name in attacks if ":" in name}
    return {**versions(), **files, ARITHMETIC: _arithmetic(subject)}


def versions() -> dict[str, str]:
    """Of the packages that compute results, those of extras where they are installed."""
    extras = [name for name in EXTRAS if find_spec(name)]
    return {name: metadata.version(name) for name in (*PACKAGES, *extras)}


def difference(planned: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What differs between two environments, in words; empty if nothing does."""
    return "; ".join(
        f"{EXPLAINED.get(name, name)}: {_shown(found, name)} instead of {_shown(planned, name)}"
        for name in {**planned, **found}
        if found.get(name) != planned.get(name)
    )


def _shown(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "nothing")
    return value[:SHOWN] if len(value) == LONG else value


def _arithmetic(subject: Subject) -> str:
    digest = hashlib.sha256()
    with threads(subject.spec.threads):
        for classifier, images in (_tiny(), (subject.classifier, subject.selection.images)):
            with evaluating(classifier), torch.enable_grad():
                inputs = images.detach().clone().requires_grad_(True)
                logits = classifier(inputs)
                slope = None
                if logits.requires_grad:
                    (slope,) = torch.autograd.grad(logits.logsumexp(-1).sum(), inputs, allow_unused=True)
            for found in (logits, slope):
                if found is not None:
                    digest.update(found.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tiny() -> tuple[Classifier, torch.Tensor]:
    """Convolutions and a linear layer of fixed numbers, and images for them."""
    module = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 40, 3, stride=2), nn.Flatten(), nn.Linear(40 * 36, 10)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(_numbers(parameter.shape) - 0.5)
    return Classifier(module), _numbers(torch.Size((8, 3, 15, 15)))


def _numbers(shape: torch.Size) -> torch.Tensor:
    """Numbers in [0, 1) that look like any, and need no random generator."""
    return (torch.arange(shape.numel()) * 7919 % 10007).reshape(shape) / 10007
