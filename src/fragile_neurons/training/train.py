"""Train a known network from nothing and write down what it reaches."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fragile_neurons.analysis.robustness import Accuracy, robust_accuracy
from fragile_neurons.analysis.selection import probed
from fragile_neurons.classifier import Classifier
from fragile_neurons.data.catalogue import find_dataset, load_data
from fragile_neurons.data.images import ImageData
from fragile_neurons.locks import alone
from fragile_neurons.models.loading import build
from fragile_neurons.models.weights import save_weights
from fragile_neurons.norms import format_epsilon
from fragile_neurons.training.loop import Progress, Schedule, fit
from fragile_neurons.training.recipes import adversarial_loss, augmented, standard_loss

WEIGHTS, CARD, CHECKPOINT = "weights.safetensors", "card.json", "checkpoint.pt"
PGD_IMAGES = 2_000


def train_model(
    model: str,
    dataset: str,
    *,
    output: Path,
    schedule: Schedule,
    adversarial: Fraction | None = None,
    device: str | torch.device = "cpu",
    command: str,
) -> Iterator[Progress]:
    """Train on the train split into `output`: weights.safetensors and card.json; yields after each step.

    An interrupted training continues from its checkpoint, to the same weights; a finished one is left alone.
    Raises InputError where another process trains into the folder.
    """
    known = find_dataset(dataset)
    data, test = (load_data(dataset, split=split, seed=schedule.seed) for split in ("train", "test"))
    torch.manual_seed(schedule.seed)
    classifier = Classifier(build(model, data), mean=known.mean, std=known.std, name=model)
    classifier.to(device)
    classifier.module.to(memory_format=torch.channels_last)
    probed(classifier, test)
    loss = standard_loss(classifier) if adversarial is None else adversarial_loss(classifier, adversarial)
    if known.mirrors:
        loss = augmented(loss)
    purpose = {"model": model, "adversarial": "no" if adversarial is None else format_epsilon(adversarial)}
    classifier.module.train()
    with alone(output):
        steps = fit(classifier.module, loss, data, schedule, checkpoint=output / CHECKPOINT, purpose=purpose)
        first = next(steps, None)
        if first is None and is_trained(output):
            return
        (output / CARD).unlink(missing_ok=True)  # of another training
        yield from () if first is None else chain([first], steps)
        save_weights(classifier, output / WEIGHTS)
        card = make_card(classifier, data, test, adversarial=adversarial, command=command)
        card["schedule"] = asdict(schedule)
        partial = (output / CARD).with_suffix(".partial")
        partial.write_text(json.dumps(card, indent=2) + "\n")
        partial.replace(output / CARD)


def is_trained(folder: Path) -> bool:
    """Whether a training ended in the folder."""
    return (folder / WEIGHTS).exists() and (folder / CARD).exists()


def make_card(
    classifier: Classifier, data: ImageData, test: ImageData, *, adversarial: Fraction | None, command: str
) -> dict[str, Any]:
    """What a reader of a model card wants: accuracies with n and interval, data, command, versions.

    FGSM over the data's grid of epsilons; PGD, which takes long, on the first images (they lie in a
    random order) at the epsilon of the training or else at the middle of the grid.
    """
    grid = sorted(Fraction(epsilon) for epsilon in find_dataset(test.name).epsilons)
    strong = grid[len(grid) // 2] if adversarial is None else adversarial
    few = test.take(np.arange(min(PGD_IMAGES, len(test))))
    attacks = {
        "fgsm": robust_accuracy(classifier, test, attack="fgsm", epsilons=[0, *sorted({*grid, strong})]),
        "pgd": robust_accuracy(classifier, few, attack="pgd", epsilons=[strong]),
    }
    described = {"fgsm": "FGSM", "pgd": "PGD, 20 steps of epsilon/8, 5 restarts"}
    return {
        "model": classifier.name,
        "parameters": sum(parameter.numel() for parameter in classifier.module.parameters()),
        "data": {"name": test.name, "train_sha256": data.sha256, "test_sha256": test.sha256},
        "clean_accuracy": _accuracy(attacks["fgsm"].at(0)),
        "robust_accuracy": [
            {"attack": described[name], "epsilon": format_epsilon(epsilon), **_accuracy(result.at(position))}
            for name, result in attacks.items()
            for position, epsilon in enumerate(result.epsilons)
            if epsilon > 0
        ],
        "weights_sha256": classifier.sha256(),
        "command": command,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }


def _accuracy(accuracy: Accuracy) -> dict[str, Any]:
    return {"value": accuracy.value, "n": accuracy.n, "ci95": list(accuracy.ci95)}
