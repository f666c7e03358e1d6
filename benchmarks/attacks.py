"""How the attacks compare with those of other libraries: the same images, as strong, faster?

    python benchmarks/attacks.py [--part agreement|strength|speed] [--output benchmarks/attacks.md]

Each measurement is kept in a cache, so that a killed run goes on and parts can be run apart; delete the
cache to measure again. Run `speed` on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Cache, Row, machine, table

import fragile_neurons as fn
from fragile_neurons.attacks.apply import Attack, apply_attack
from fragile_neurons.attacks.autoattack import autoattack
from fragile_neurons.attacks.fgsm import fgsm
from fragile_neurons.attacks.pgd import pgd, pgd_margin, pgd_strong
from fragile_neurons.norms import format_epsilon
from fragile_neurons.stats import wilson

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the other libraries warn of what they import
    import foolbox
    import torchattacks
    from art.attacks.evasion import FastGradientMethod
    from art.estimators.classification import PyTorchClassifier

SUBJECTS = {"mnist-cnn": "mnist", "mnist-cnn-robust": "mnist", "cifar10-resnet20": "cifar10"}
IMAGES = 500
MANY = 2000  # half a percentage point is ten images
BATCH = 250
CHUNK = 100  # images, after which a measurement of strength is kept
ROUNDS = 5
LEFT = 0.4  # share of the val images that the built-in attack leaves right at the epsilon of `strength`
FINEST = Fraction(1, 2000)
STEPS = 20
RUNGS: dict[str, dict[str, Attack]] = {
    "pgd, pgd-margin (20 steps, 5 restarts each)": {"pgd": pgd, "pgd-margin": pgd_margin},
    "the same with 100 steps": {
        "pgd": partial(pgd, steps=100),
        "pgd-margin": partial(pgd_margin, steps=100),
    },
    "pgd-strong (100 decaying steps, 4 restarts)": {"pgd-strong": pgd_strong},
    "pgd-strong (100 decaying steps, 10 restarts)": {"pgd-strong": partial(pgd_strong, restarts=10)},
}
PACKAGES = ("torch", "foolbox", "torchattacks", "adversarial-robustness-toolbox", "pyautoattack")


def load(
    model: str, split: str = "test", images: int = IMAGES
) -> tuple[fn.Classifier, torch.Tensor, torch.Tensor]:
    """A bundled network, and the first images of a seeded sample."""
    classifier = fn.load_model(model).eval()
    return classifier, *fn.load_data(SUBJECTS[model], split=split, limit=images, seed=0)[:]


def batched(count: int, size: int = BATCH) -> Iterable[slice]:
    """Slices of at most `size`."""
    return (slice(start, start + size) for start in range(0, count, size))


def judge(
    attack: Attack, classifier: fn.Classifier, images: torch.Tensor, labels: torch.Tensor, epsilon: Fraction
) -> tuple[np.ndarray[Any, Any], float, float]:
    """(n,) bool right under attack; images passed forward and gradients passed back, per image."""
    right, forward, backward = [], 0, 0
    for part in batched(len(images)):
        generator = torch.Generator().manual_seed(part.start)
        found = apply_attack(attack, classifier, images[part], labels[part], [epsilon], generator=generator)
        right.append((found.predictions[0] == labels[part]).numpy())
        forward, backward = forward + found.passes.forward, backward + found.passes.backward
    return np.concatenate(right), forward / len(images), backward / len(images)


def foolbox_attack(attack: Any) -> Attack:
    """One of foolbox's attacks as an attack of this package."""

    def run(
        classifier: Any, images: Any, labels: Any, epsilons: Any, *, generator: Any = None
    ) -> torch.Tensor:
        model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device=images.device)
        return torch.stack(attack(model, images, labels, epsilons=[float(one) for one in epsilons])[1])

    return run


def torchattacks_attack(make: Callable[[Any, float], Any]) -> Attack:
    """One of torchattacks' attacks as an attack of this package."""

    def run(
        classifier: Any, images: Any, labels: Any, epsilons: Any, *, generator: Any = None
    ) -> torch.Tensor:
        return torch.stack([make(classifier, float(one))(images, labels) for one in epsilons])

    return run


def art_fgsm(
    classifier: Any, images: Any, labels: Any, epsilons: Any, *, generator: Any = None
) -> torch.Tensor:
    """ART's FGSM as an attack of this package."""
    estimator = PyTorchClassifier(
        classifier, torch.nn.CrossEntropyLoss(), images.shape[1:], 10, clip_values=(0, 1), device_type="cpu"
    )
    made = [
        FastGradientMethod(estimator, eps=float(one), batch_size=len(images)).generate(
            images.numpy(), labels.numpy()
        )
        for one in epsilons
    ]
    return torch.from_numpy(np.stack(made))


OTHERS_FGSM: dict[str, Attack] = {
    "torchattacks": torchattacks_attack(lambda model, eps: torchattacks.FGSM(model, eps=eps)),
    "foolbox": foolbox_attack(foolbox.attacks.LinfFastGradientAttack(random_start=False)),
    "ART": art_fgsm,
}


def plain_pgd(random_start: bool) -> dict[str, Attack]:
    """PGD of equal steps and step size, one restart; foolbox's and torchattacks' judge their last image."""
    size = 2.5 / STEPS
    return {
        "here": partial(pgd, steps=STEPS, restarts=1, random_start=random_start),
        "foolbox": foolbox_attack(
            foolbox.attacks.LinfPGD(rel_stepsize=size, steps=STEPS, random_start=random_start)
        ),
        "torchattacks": torchattacks_attack(
            lambda model, eps: torchattacks.PGD(
                model, eps=eps, alpha=size * eps, steps=STEPS, random_start=random_start
            )
        ),
    }


# --- agreement


def fgsm_agreement(model: str, library: str) -> Row:
    """Pixels in which another library's FGSM differs, and those among them that float32 does not explain.

    Theirs has its gradient at the logits in float32, where 1 - p is wrong by up to 6e-8: it may turn the
    sign of a pixel whose gradient is that close to zero.
    """
    classifier, images, labels = load(model)
    epsilon = Fraction(1, 10) if SUBJECTS[model] == "mnist" else Fraction(2, 255)
    differing = unexplained = pixels = vanished = 0
    for part in batched(len(images)):
        x, y = images[part], labels[part]
        ours = fgsm(classifier, x, y, [epsilon])[0]
        theirs = OTHERS_FGSM[library](classifier, x, y, [epsilon])[0]
        leaves = x.clone().requires_grad_(True)
        logits = classifier(leaves)
        wrong = torch.softmax(logits.detach().double(), 1).scatter(1, y[:, None], 0.0)
        doubt = wrong.sum(1, keepdim=True)
        at_logits = (wrong / doubt).scatter(1, y[:, None], -1.0).float()
        (gradient,) = torch.autograd.grad(logits, leaves, at_logits)
        relative = gradient.abs() / gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        uncertain = (1e-4 + 4 * 6e-8 / doubt).view(-1, 1, 1, 1)
        unequal = (ours - theirs).abs() > 1e-6
        differing += int(unequal.sum())
        unexplained += int((unequal & (relative > uncertain)).sum())
        vanished += int((theirs == x).flatten(1).all(dim=1).sum())
        pixels += unequal.numel()
    return {
        "network": model,
        "FGSM of": library,
        "epsilon": format_epsilon(epsilon),
        "pixels": f"{pixels:,}",
        "differing": f"{differing:,}",
        "unexplained by float32": unexplained,
        "images that the other leaves as they are": vanished,
    }


def pgd_agreement(model: str) -> Row:
    """Success of PGD without random start, equal steps and step size."""
    classifier, images, labels = load(model, images=MANY)
    epsilon = Fraction(1, 10) if SUBJECTS[model] == "mnist" else Fraction(1, 255)
    if model == "mnist-cnn-robust":
        epsilon = Fraction(1, 4)
    fooled = {
        name: 100 * float((~judge(attack, classifier, images, labels, epsilon)[0]).mean())
        for name, attack in plain_pgd(random_start=False).items()
    }
    others = [value for name, value in fooled.items() if name != "here"]
    gaps = ", ".join(f"{fooled['here'] - value:+.1f}" for value in others)
    shown = {f"{name}, fooled": f"{value:.1f} %" for name, value in fooled.items()}
    return {"network": model, "epsilon": format_epsilon(epsilon), **shown, "difference, pp": gaps}


# --- strength


def val_epsilon(model: str) -> str:
    """The smallest multiple of 1/2000 at which pgd-strong leaves at most 40 % of val images right."""
    classifier, images, labels = load(model, "val", 200)
    strong = partial(pgd_strong, restarts=2)
    low, high = 0, 1000
    while high - low > 1:
        middle = (low + high) // 2
        right, _, _ = judge(strong, classifier, images, labels, middle * FINEST)
        low, high = (middle, high) if right.mean() > LEFT else (low, middle)
    return str(high * FINEST)


def strength(cache: Cache, model: str, name: str, epsilon: Fraction) -> Row:
    """Who is right in the worst case of the attacks of one rung, or of AutoAttack; and what it took."""
    classifier, images, labels = load(model)
    attacks = {"autoattack": autoattack} if name == "autoattack" else RUNGS[name]
    parts = [
        cache.get(
            f"strength {model} {name} {epsilon} from {part.start}",
            partial(worst_of, attacks, classifier, images[part], labels[part], epsilon),
        )
        for part in batched(len(images), CHUNK)
    ]
    return {
        "right": [one for part in parts for one in part["right"]],
        "forward": statistics.mean(part["forward"] for part in parts),
        "backward": statistics.mean(part["backward"] for part in parts),
    }


def worst_of(
    attacks: dict[str, Attack],
    classifier: fn.Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilon: Fraction,
) -> Row:
    """Who is right under all of some attacks, and the passes of all of them."""
    right, forward, backward = np.ones(len(images), bool), 0.0, 0.0
    for attack in attacks.values():
        still, more_forward, more_backward = judge(attack, classifier, images, labels, epsilon)
        right, forward, backward = right & still, forward + more_forward, backward + more_backward
    return {"right": right.tolist(), "forward": forward, "backward": backward}


def strength_rows(model: str, epsilon: str, found: dict[str, Row]) -> list[Row]:
    """A row for AutoAttack and one for each rung."""
    theirs = np.array(found["autoattack"]["right"])
    rows = []
    for name, one in found.items():
        right = np.array(one["right"])
        low, high = wilson(int(right.sum()), len(right))
        rows.append(
            {
                "network": model,
                "epsilon (from val)": format_epsilon(Fraction(epsilon)),
                "attack": name,
                "right": f"{100 * right.mean():.1f} % [{100 * low:.1f}, {100 * high:.1f}]",
                "minus AutoAttack, pp": f"{100 * (right.mean() - theirs.mean()):+.1f}",
                "only this one fools": int((theirs & ~right).sum()),
                "only AutoAttack fools": int((right & ~theirs).sum()),
                "passes per image": f"{one['forward']:,.0f} + {one['backward']:,.0f}",
            }
        )
    return rows


# --- speed


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of each; the rounds are interleaved, and one before them does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(ROUNDS + 1):
        for name, work in works.items():
            taken = seconds(work)
            if turn:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def run_all(
    attack: Attack,
    classifier: fn.Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: list[Fraction],
) -> torch.Tensor:
    """(epsilons,) images right, the attack's own images judged by one more pass each."""
    right = torch.zeros(len(epsilons))
    for part in batched(len(images), 256):
        found = attack(classifier, images[part], labels[part], epsilons, generator=None)
        with torch.no_grad():
            right += torch.stack([(classifier(one).argmax(1) == labels[part]).sum() for one in found])
    return right


def fgsm_speed() -> list[Row]:
    """FGSM over ten epsilons on 2,000 MNIST images, and the accuracy at each."""
    classifier, images, labels = load("mnist-cnn", images=MANY)
    epsilons = [Fraction(step, 40) for step in range(1, 11)]
    attacks = {"here": fgsm, **OTHERS_FGSM}
    works = {
        name: partial(run_all, attack, classifier, images, labels, epsilons)
        for name, attack in attacks.items()
    }
    taken = medians(works)
    return speed_rows("FGSM, 10 epsilons, 2,000 images", "mnist-cnn", taken, dict.fromkeys(taken, ""))


def pgd_speed(model: str, epsilon: Fraction, images: int) -> list[Row]:
    """PGD of 20 steps from a random start, where most images fall."""
    classifier, pixels, labels = load(model, images=images)
    attacks = plain_pgd(random_start=True)
    del attacks["foolbox"]
    works = {
        name: partial(run_all, attack, classifier, pixels, labels, [epsilon])
        for name, attack in attacks.items()
    }
    fooled = {name: f"{100 - 100 * float(work()[0]) / images:.1f} %" for name, work in works.items()}
    name = f"PGD-20, epsilon {format_epsilon(epsilon)}, {images:,} images"
    return speed_rows(name, model, medians(works), fooled)


def speed_rows(what: str, model: str, taken: dict[str, float], fooled: dict[str, str]) -> list[Row]:
    """A row per library, with its time over ours."""
    return [
        {
            "work": what,
            "network": model,
            "library": name,
            "fooled": fooled[name],
            "seconds (median of 5)": f"{value:.2f}",
            "times ours": f"{value / taken['here']:.2f}",
        }
        for name, value in taken.items()
    ]


def calibrated_threads() -> int:
    """One thread or all cores, whichever does FGSM on mnist-cnn faster."""
    classifier, images, labels = load("mnist-cnn")
    times = {}
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        torch.set_num_threads(threads)
        work = partial(run_all, fgsm, classifier, images, labels, [Fraction(1, 10)])
        times[threads] = medians({"": work})[""]
    return min(times, key=lambda threads: times[threads])


# --- the page


def agreement_part(cache: Cache) -> str:
    rows = [
        cache.get(f"fgsm {model} {library}", partial(fgsm_agreement, model, library))
        for model in SUBJECTS
        for library in ("foolbox", "torchattacks")
    ]
    equal = [cache.get(f"pgd {model}", partial(pgd_agreement, model)) for model in SUBJECTS]
    return f"""## The same images?

FGSM on {IMAGES} test images. A pixel is explained where float32 cannot tell its gradient's sign.

{table(rows)}

PGD on {MANY:,} test images without random start, {STEPS} steps of 2.5 / {STEPS} epsilon, one restart. Here
the first image that fools is kept, there the last one counts; and there a confident image has a gradient of
zero, in float32.

{table(equal)}"""


def strength_part(cache: Cache) -> str:
    rows = []
    for model in ("mnist-cnn-robust", "mnist-cnn", "cifar10-resnet20"):
        epsilon = cache.get(f"epsilon {model}", partial(val_epsilon, model))
        found = {name: strength(cache, model, name, Fraction(epsilon)) for name in ("autoattack", *RUNGS)}
        rows += strength_rows(model, epsilon, found)
    return f"""## As strong?

{IMAGES} test images. The epsilon leaves pgd-strong (2 restarts) about {LEFT:.0%} of 200 val images.
AutoAttack is the standard set of pyautoattack. An attack's images are judged by a pass of their own; passes:
images through the network + gradients back.

{table(rows)}"""


def speed_part(cache: Cache) -> str:
    threads = cache.get("threads", calibrated_threads)
    torch.set_num_threads(threads)
    rows = [
        *cache.get("speed fgsm", fgsm_speed),
        *cache.get("speed pgd mnist", partial(pgd_speed, "mnist-cnn", Fraction(3, 20), 2000)),
        *cache.get("speed pgd cifar10", partial(pgd_speed, "cifar10-resnet20", Fraction(2, 255), 500)),
    ]
    return (
        f"## Faster?\n\nAttack and one pass that judges its images, in batches of 256, {threads} thread(s) "
        f"(calibrated), rounds interleaved.\n\n{table(rows)}"
    )


PARTS = {"agreement": agreement_part, "strength": strength_part, "speed": speed_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="default: all of them")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache/fragile-neurons/benchmarks/attacks.json"
    )
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # AutoAttack's remarks on itself
    cache = Cache(given.cache)
    if given.part:
        print(PARTS[given.part](cache))
        return
    parts = [part(cache) for part in PARTS.values()]
    head = f"# Attacks, measured\n\nMade by `python benchmarks/attacks.py`. {machine(PACKAGES)}"
    given.output.write_text("\n\n".join([head, *parts]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
