"""The fatal checks: what makes every later number meaningless is refused before any is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.errors import FragileNeuronsError, InputError
from fragile_neurons.foreign import logits_of

PROBE_IMAGES = 8
FLAGGED = ("fail", "warn")  # statuses of a check
TOLERANCE = 1e-4  # of the largest logit; batch-mates and repeats may only move the last bits


@dataclass(frozen=True)
class Check:
    """One question about a network, its answer (pass, warn, fail or not applicable) and what it means.

    value: None where the question does not apply. advice: what to do. warn, fail: the values above
    which it is flagged, where there are any.
    """

    name: str
    status: str
    value: float | None
    meaning: str
    advice: str = ""
    warn: float | None = None
    fail: float | None = None


def probe(
    classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...]
) -> tuple[Check, ...]:
    """Run the fatal checks on at least two images; raises InputError at the first that fails."""
    was_training = any(module.training for module in classifier.module.modules())
    _refuse_weights(classifier.module)
    _refuse_batch_statistics(classifier.module)
    if len(images) < 2:
        raise InputError(
            "there are too few images to probe the network",
            given=len(images),
            allowed="at least 2",
            fix="give more images",
        )
    _refuse_channels(classifier, images)
    with evaluating(classifier), torch.no_grad(), _same_buffers(classifier.module):
        logits = _forward(classifier, images)
        _refuse_shape(logits, images, labels, classes)
        _refuse_probabilities(logits)
        repeat = _largest_move(logits, _forward(classifier, images))
        _refuse_move(
            repeat, "the outputs change between passes", "a deterministic network", "remove its noise"
        )
        mixed = _move_by_mates(classifier, images, logits)
        _refuse_move(
            mixed,
            "the outputs of an image depend on the other images in its batch",
            "a network that treats each image alone",
            "use running statistics in normalisation layers",
        )
    return (
        Check("finite weights", "pass", 0.0, "no weight is NaN or infinite"),
        Check(
            "evaluation mode",
            "pass",
            float(was_training),
            "the network came in train mode; it was analysed in evaluation mode and put back"
            if was_training
            else "the network came in evaluation mode",
        ),
        Check(
            "repeatable", "pass", repeat, "largest move of a logit between two passes, of the largest logit"
        ),
        Check("batch-mates", "pass", mixed, "largest move of a logit when the rest of the batch changes"),
        Check("logits", "pass", 0.0, "the outputs are not probabilities"),
    )


def _refuse_weights(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(
                f"the weights {name} are not finite",
                given=f"{int((~torch.isfinite(tensor)).sum())} NaN or infinite of {tensor.numel()} values",
                allowed="finite weights",
                fix="load an earlier checkpoint; this training diverged",
            )


def _refuse_batch_statistics(module: nn.Module) -> None:
    for name, submodule in module.named_modules():
        if isinstance(submodule, nn.modules.batchnorm._BatchNorm) and submodule.running_mean is None:
            raise InputError(
                f"the normalisation {name} uses the statistics of the batch",
                given="track_running_stats=False",
                allowed="running statistics: the outputs of an image may not depend on its batch-mates",
                fix="train with track_running_stats=True",
            )


def _refuse_channels(classifier: Classifier, images: torch.Tensor) -> None:
    # of its own, because one grey channel would be broadcast against a mean per colour
    if classifier.mean is not None and classifier.mean.shape[1] not in (1, images.shape[1]):
        raise InputError(
            "the images have the wrong number of channels",
            given=f"images {tuple(images.shape)}, mean and std of {classifier.mean.shape[1]} channels",
            allowed="as many channels as mean and std have values",
            fix="choose the data this network was trained on, or its own mean and std",
        )


def _forward(classifier: Classifier, images: torch.Tensor) -> torch.Tensor:
    try:
        logits: torch.Tensor = classifier(images)
    except FragileNeuronsError:
        raise
    except Exception as error:  # whatever a foreign network raises, it cannot take these images
        raise InputError(
            "the network cannot process these images",
            given=f"images {tuple(images.shape)}: {' '.join(str(error).split())[:300]}",
            allowed="images (n, channels, height, width) of the channels and size it was built for",
            fix="the network takes channels last; wrap it in a module that passes images.permute(0, 2, 3, 1)"
            if _takes_channels_last(classifier, images)
            else "choose the data this network was trained on",
        ) from error
    if logits.ndim != 2 or logits.dtype != torch.float32:
        raise InputError(
            "the network does not return logits",
            given=f"{tuple(logits.shape)} {logits.dtype}",
            allowed=f"a tensor ({len(images)}, classes) of torch.float32",
            fix="wrap the network so that it returns its logits alone, in single precision",
        )
    return logits


def _takes_channels_last(classifier: Classifier, images: torch.Tensor) -> bool:
    try:  # without the normalisation, which only its shape could tell from the images
        logits = logits_of(classifier.module(images.permute(0, 2, 3, 1)))
    except Exception:
        return False
    return logits.ndim == 2 and len(logits) == len(images)


@contextmanager
def _same_buffers(module: nn.Module) -> Iterator[None]:
    """Raise an InputError where buffers change inside the block; they have their values back in any case."""
    before = {name: tensor.clone() for name, tensor in module.named_buffers()}
    changed: list[str] = []
    try:
        yield
    finally:
        for name, tensor in module.named_buffers():
            if name in before and not torch.equal(tensor, before[name]):
                changed.append(name)
        for name in changed:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, before[name])
    if changed:
        raise InputError(
            "the network changes as it runs",
            given=f"other values in {', '.join(changed[:4])} after a few passes in evaluation mode",
            allowed="a network that a pass leaves as it was",
            fix="update these buffers in train mode only",
        )


def _refuse_shape(
    logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...]
) -> None:
    if len(logits) != len(images) or logits.shape[1] != len(classes) or logits.shape[1] < 2:
        raise InputError(
            "the network has the wrong number of classes",
            given=f"logits {tuple(logits.shape)} for {len(images)} images",
            allowed=f"({len(images)}, {len(classes)}): one logit per class of the data, at least 2",
            fix="choose the data this network was trained on",
        )
    if not torch.isfinite(logits).all():
        raise InputError(
            "the logits are not finite",
            given=f"{int((~torch.isfinite(logits)).sum())} NaN or infinite of {logits.numel()}",
            allowed="finite logits",
            fix="check the normalisation (mean, std) and the weights",
        )
    if len(labels) and int(labels.max()) >= len(classes):
        raise InputError(
            "a label is out of range",
            given=int(labels.max()),
            allowed=f"0 to {len(classes) - 1}",
            fix="number the classes from 0",
        )


def _refuse_probabilities(logits: torch.Tensor) -> None:
    sums = logits.sum(dim=1)
    if (logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise InputError(
            "the network returns probabilities, not logits",
            given=f"rows between {float(logits.min()):g} and {float(logits.max()):g} that sum to 1",
            allowed="the scores before the softmax: after it gradients vanish and attacks look weak",
            fix="remove the softmax at its end",
        )


def _move_by_mates(classifier: Classifier, images: torch.Tensor, logits: torch.Tensor) -> float:
    """The largest move when either half of the batch gives way to the other half, turned round."""
    half = (len(images) + 1) // 2
    moves = []
    for kept in (slice(half), slice(len(images) - half, None)):
        mates = images.flip(0)
        mates[kept] = images[kept]
        moves.append(_largest_move(logits[kept], _forward(classifier, mates)[kept]))
    return float(torch.tensor(moves).max())  # unlike Python's max, never drops a NaN


def _largest_move(logits: torch.Tensor, again: torch.Tensor) -> float:
    scale = float(logits.abs().max())
    return float((again - logits).abs().max()) / scale if scale > 0 else 0.0


def _refuse_move(move: float, problem: str, allowed: str, fix: str) -> None:
    if not move <= TOLERANCE:
        raise InputError(
            problem,
            given=f"a logit moved by {move:.2g} of the largest logit",
            allowed=f"{allowed}, to {TOLERANCE:g}",
            fix=fix,
        )
