"""One loop that fits parameters to a loss, checkpointed after every epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import InputError

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
"""From images, labels and random numbers to a value, parts of which may have passed back gradients before."""


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "SGD": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


@dataclass(frozen=True)
class Schedule:
    """An optimizer under a one-cycle learning rate (Smith 2018); steps: in all, if the epochs have more."""

    epochs: int
    steps: int | None = None
    optimizer: str = "AdamW"
    batch_size: int = 128
    peak_learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """Where a fit stands after a step of an epoch; loss is the mean over the epoch so far."""

    epoch: int
    step: int
    steps: int
    loss: float


def fit(
    module: nn.Module,
    loss: Loss,
    data: ImageData,
    schedule: Schedule,
    *,
    checkpoint: Path,
    purpose: dict[str, str],
) -> Iterator[Progress]:
    """Fit the module's parameters that require it to the loss over shuffled batches; yields after every step.

    A checkpoint of the same schedule and purpose is continued from its last whole epoch, to the
    same result; a checkpoint of another one raises InputError.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[schedule.optimizer](
        parameters, lr=schedule.peak_learning_rate, weight_decay=schedule.weight_decay
    )
    steps = len(data) // schedule.batch_size
    total_steps = schedule.epochs * steps if schedule.steps is None else schedule.steps
    learning_rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.peak_learning_rate, total_steps=total_steps
    )
    identity = {**asdict(schedule), **purpose, "data": data.sha256}
    parts = {"module": module, "optimizer": optimizer, "learning_rate": learning_rate}
    device = parameters[0].device
    for epoch in range(_restore(checkpoint, identity, parts), schedule.epochs):
        torch.manual_seed(schedule.seed * 100_003 + epoch)
        generator = torch.Generator().manual_seed(schedule.seed * 100_003 + epoch)
        order = torch.randperm(len(data), generator=generator).numpy()
        total = 0.0
        for step in range(min(steps, total_steps - epoch * steps)):
            images, labels = data[order[step * schedule.batch_size : (step + 1) * schedule.batch_size]]
            optimizer.zero_grad(set_to_none=True)
            value = loss(images.to(device), labels.to(device), generator)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            learning_rate.step()
            total += float(value.detach())
            yield Progress(epoch=epoch + 1, step=step + 1, steps=steps, loss=total / (step + 1))
        _save(checkpoint, {"identity": identity, "epoch": epoch + 1, **_states(parts)})


def _states(parts: dict[str, Any]) -> dict[str, Any]:
    return {key: part.state_dict() for key, part in parts.items()}


def _save(checkpoint: Path, content: dict[str, Any]) -> None:
    partial = checkpoint.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, checkpoint)


def _restore(checkpoint: Path, identity: dict[str, Any], parts: dict[str, Any]) -> int:
    if not checkpoint.exists():
        return 0
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        found, epoch = dict(content["identity"]), int(content["epoch"])
        states = {key: content[key] for key in parts}
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        raise InputError(
            "the checkpoint cannot be read",
            given=f"{checkpoint}: {' '.join(str(error).split())[:200]}",
            allowed="a checkpoint that an interrupted training left",
            fix="remove the file to train from the beginning",
        ) from None
    for key in {**identity, **found}:
        if found.get(key) != identity.get(key):
            raise InputError(
                f"the checkpoint belongs to another training: {key} differs",
                given=f"{found.get(key)} in {checkpoint}",
                allowed=str(identity.get(key)),
                fix="choose another --output, or remove the checkpoint",
            )
    for key, part in parts.items():
        part.load_state_dict(states[key])
    return epoch
