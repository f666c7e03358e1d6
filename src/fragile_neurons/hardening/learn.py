"""Fitting gains, or ordinary weights, to the images that an attack makes of the training images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fragile_neurons.attacks.pgd import ball, random_point
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.images import ImageData
from fragile_neurons.evidence import Arrays
from fragile_neurons.folding import holding
from fragile_neurons.neurons import Site
from fragile_neurons.norms import project
from fragile_neurons.training.loop import Loss, Schedule

BATCH = 64
PACED_STEPS = 7
LAYERS, NORM = (nn.Conv2d, nn.Linear), nn.modules.batchnorm._BatchNorm
GAINS, ALL_WEIGHTS, BATCH_NORMS = "gains", "all weights", "batch norms"
WEIGHTS = "weights/"  # before the key of the state dict
# the largest learning rate, over the square root of the number of layers whose changes add up
RATES = {GAINS: 0.1, ALL_WEIGHTS: 0.007, BATCH_NORMS: 0.05}
STEP_SIZE = 1.25  # of epsilon


class LearnedGains(nn.Module):
    """The logarithm of a factor for each channel at some sites, and a shift where a weight can hold it."""

    def __init__(self, classifier: Classifier, sites: Sequence[Site]) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.logarithms, self.shifts = nn.ParameterList(), nn.ParameterList()
        for site in sites:
            module = classifier.module.get_submodule(site.module)
            assert isinstance(module.weight, torch.Tensor)
            zeros = module.weight.new_zeros(len(module.weight), dtype=torch.float32)
            self.logarithms.append(nn.Parameter(zeros.clone()))
            self.shifts.append(nn.Parameter(zeros, requires_grad=module.bias is not None))

    @property
    def changes(self) -> dict[Site, tuple[torch.Tensor, torch.Tensor]]:
        """For holding; gradients pass to the parameters."""
        columns = zip(self.sites, self.logarithms, self.shifts, strict=True)
        return {site: (one.exp(), two) for site, one, two in columns}

    def to_arrays(self) -> Arrays:
        """What was learned, as Gains.to_arrays has it."""
        return {
            f"{site.layer}/{name}": one.detach().cpu().double().numpy()
            for site, pair in self.changes.items()
            for name, one in zip(("factors", "shifts"), pair, strict=True)
        }


@dataclass(frozen=True, eq=False)
class Learner:
    """What is fitted, to which loss, at which learning rate at most, and what comes of it.

    working: the context that the fit needs. result: arrays by name: of gains as Gains.to_arrays has them,
    of weights as weights/ and the key of the state dict.
    """

    module: nn.Module
    loss: Loss
    rate: float
    working: Callable[[], AbstractContextManager[None]]
    result: Callable[[], Arrays]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is fitted."""
        return [one for one in self.module.parameters() if one.requires_grad]


def make_learner(what: str, classifier: Classifier, sites: Sequence[Site], epsilon: Fraction) -> Learner:
    """Of gains at these sites with all weights frozen, of all weights, or of the batch norms' alone.

    In evaluation mode all of them: a batch norm's statistics stay those of clean images.
    """
    if what == GAINS:
        gains = LearnedGains(classifier, sites)
        loss = noisy_and_attacked(classifier, epsilon, lambda: holding(classifier, gains.changes))
        return Learner(
            gains,
            loss,
            RATES[GAINS] / math.sqrt(len(sites)),
            lambda: frozen(classifier.module),
            gains.to_arrays,
        )
    copied = classifier.duplicate().eval()
    fitted = _norm_parameters(copied.module) if what == BATCH_NORMS else list(copied.module.parameters())
    copied.module.requires_grad_(False)
    for parameter in fitted:
        parameter.requires_grad_(True)
    loss = noisy_and_attacked(copied, epsilon, nullcontext)

    def result() -> Arrays:
        named = copied.module.named_parameters()
        return {WEIGHTS + key: one.detach().cpu().numpy() for key, one in named if one.requires_grad}

    layers = sum(isinstance(one, NORM if what == BATCH_NORMS else LAYERS) for one in copied.module.modules())
    return Learner(copied.module, loss, RATES[what] / math.sqrt(max(layers, 1)), nullcontext, result)


def noisy_and_attacked(
    classifier: Classifier, epsilon: Fraction, changed: Callable[[], AbstractContextManager[None]]
) -> Loss:
    """Cross-entropy at random points of the ball plus that at the FGSM images made from them.

    The steps of Wong, Rice and Kolter 2020. The backward pass of the first part, made here, serves the attack
    and the fit at once; the loop makes the second. changed: the context of each pass.
    """

    def loss(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        reach = ball(images, epsilon)
        points = random_point(images, reach, generator).requires_grad_(True)
        with changed():
            functional.cross_entropy(classifier(points), labels).backward()  # type: ignore[no-untyped-call]
        assert points.grad is not None
        attacked = project(points.detach() + STEP_SIZE * reach * points.grad.sign(), images, reach)
        with changed():
            return functional.cross_entropy(classifier(attacked), labels)

    return loss


def with_weights(original: Classifier, weights: Arrays) -> Classifier:
    """A copy with other values for these weights."""
    changed = original.duplicate()
    state = changed.module.state_dict()
    for key, values in weights.items():
        state[key.removeprefix(WEIGHTS)].copy_(torch.from_numpy(values))
    return changed


def between(original: Classifier, weights: Arrays, strength: float) -> Arrays:
    """Weights on the straight line from the original's (0) to these (1)."""
    state = original.module.state_dict()
    return {
        key: torch.lerp(state[key.removeprefix(WEIGHTS)].cpu(), torch.from_numpy(values), strength).numpy()
        for key, values in weights.items()
    }


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside the block the module is in evaluation mode and none of its weights requires a gradient."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        with evaluating(module):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def alternatives(classifier: Classifier) -> list[str]:
    """What else could be fitted: all weights, and the batch norms' scales and shifts if there are any."""
    return [ALL_WEIGHTS, *([BATCH_NORMS] if _norm_parameters(classifier.module) else [])]


def _norm_parameters(module: nn.Module) -> list[nn.Parameter]:
    norms = [one for one in module.modules() if isinstance(one, NORM)]
    return [parameter for norm in norms for parameter in norm.parameters(recurse=False)]


def seconds_per_step(learners: Sequence[Learner], data: ImageData, batch_size: int) -> list[float]:
    """What a step of each takes, reading its images included, in turns: the median of a few."""
    generator = torch.Generator().manual_seed(0)
    times: list[list[float]] = [[] for _ in learners]
    optimizers = [torch.optim.SGD(learner.parameters, lr=0.0) for learner in learners]
    for turn in range(PACED_STEPS):
        rows = np.arange(turn * batch_size, (turn + 1) * batch_size) % len(data)
        for learner, optimizer, found in zip(learners, optimizers, times, strict=True):
            device = learner.parameters[0].device
            with learner.working():
                start = time.perf_counter()
                images, labels = data[rows]
                learner.loss(images.to(device), labels.to(device), generator).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                found.append(time.perf_counter() - start)
                optimizer.zero_grad(set_to_none=True)
    return [float(np.median(found[1:])) for found in times]


def make_schedule(learner: Learner, steps: int, data: ImageData, batch_size: int, seed: int) -> Schedule:
    """So many steps over the images."""
    size = min(batch_size, len(data))
    return Schedule(
        epochs=math.ceil(steps / (len(data) // size)),
        steps=steps,
        batch_size=size,
        peak_learning_rate=learner.rate,
        weight_decay=0.0,
        seed=seed,
    )
