"""How fast sweeps are: the exact way beside the loops that people write today.

    python benchmarks/sweep.py [--parts speed layers linear] [--output benchmarks/sweep.md]

All ways are timed in one process, round by round. Each measurement is kept in a cache, so that a killed
run goes on; delete the cache to measure again. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torchvision
from bench import Cache, Row, machine, table
from captum.attr import LayerFeatureAblation
from torch.utils.flop_counter import FlopCounterMode

import fragile_neurons as fn
from fragile_neurons.interventions import drop, intervening
from fragile_neurons.losses import margins
from fragile_neurons.neurons import Layer, executed_layers
from fragile_neurons.sweeps.exact import Exact
from fragile_neurons.sweeps.pairs import Pairs

IMAGES = 500
BATCH = 250  # of the exact way: as the command, but a divisor of the images
LOOP_BATCHES = (50, 125, 250)
ROUNDS = 3
SIZES = (250, 500, 1000)
PACKAGES = ("torch", "torchvision", "captum")
SUBJECTS = {
    "mnist-cnn": 5.0,
    "mobilenet_v3_small": 6.0,
    "squeezenet1_1": 3.0,
    "shufflenet_v2_x1_0": 1.9,
    "resnet18": 1.5,
    "resnet20": 1.25,
}
"""The networks, and how many times faster than the loop the exact way is meant to be."""

Work = Callable[[], torch.Tensor]


def load(name: str, images: int = IMAGES) -> tuple[fn.Classifier, torch.Tensor, torch.Tensor]:
    """A network and test images of its size; torchvision's with their own stems, weights drawn by a seed."""
    torch.manual_seed(0)
    if name == "mnist-cnn":
        classifier, data = fn.load_model(name), fn.load_data("mnist", limit=images)
    else:
        data = fn.load_data("cifar10", limit=images)
        if name == "resnet20":
            classifier = fn.load_model("cifar10-resnet20")
        else:
            classifier = fn.Classifier(torchvision.models.get_model(name, weights=None, num_classes=10))
    return classifier.eval(), *data[:]


def target_layers(classifier: fn.Classifier, images: torch.Tensor, which: str) -> list[Layer]:
    """The first convolution, or all of them."""
    layers = [layer for layer in executed_layers(classifier, images[:8]) if layer.kind == "Conv2d"]
    return layers[:1] if which == "first" else layers


def loop(
    classifier: fn.Classifier, images: torch.Tensor, layers: Sequence[Layer], batch: int, last: bool
) -> torch.Tensor:
    """The loop that people write: a hook, the whole network, one neuron after another."""
    layout = torch.channels_last if last else torch.contiguous_format
    found = []
    with torch.no_grad():
        for layer in layers:
            for channel in range(layer.channels):
                with intervening(classifier, layer.site("conv"), [channel], drop(0.0)):
                    parts = [
                        classifier(images[start : start + batch].contiguous(memory_format=layout))
                        for start in range(0, len(images), batch)
                    ]
                found.append(torch.cat(parts))
    return torch.stack(found)


def exact(way: Exact, images: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """The same by the exact way: (neurons, images, classes)."""
    sites = [layer.site("conv") for layer in layers]
    batches = []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        walk, of_batch = way.walk(part, sites), []
        for layer, site in zip(layers, sites, strict=True):
            pairs = Pairs.of(list(range(layer.channels)), torch.arange(len(part)))
            of_batch.append(walk.logits(site, drop(0.0), pairs).unflatten(0, (layer.channels, -1)))
        batches.append(torch.cat(of_batch))
    return torch.cat(batches, dim=1)


def captum_ablation(
    classifier: fn.Classifier, images: torch.Tensor, layers: Sequence[Layer], batch: int
) -> torch.Tensor:
    """Captum's LayerFeatureAblation, a channel at a time."""
    for layer in layers:
        ablation = LayerFeatureAblation(classifier, classifier.module.get_submodule(layer.name))
        mask = torch.arange(layer.channels).view(1, -1, 1, 1)
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            with torch.no_grad():
                targets = torch.zeros(len(part), dtype=torch.int64)
                ablation.attribute(part, target=targets, layer_mask=mask, layer_baselines=0)
    return torch.empty(0)


def seconds(works: dict[str, Work], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """The times of each, after one that warms up, the ways by turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(-1, rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if round_ >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def best_batch(make: Callable[[int], Work]) -> int:
    """The batch of the fastest loop."""
    times = seconds({str(batch): make(batch) for batch in LOOP_BATCHES}, rounds=1)
    return int(min(times, key=lambda batch: statistics.median(times[batch])))


def calibrated_threads() -> int:
    """One thread or all cores, whichever runs the plain loop on mnist-cnn faster."""
    classifier, images, _ = load("mnist-cnn", 250)
    layers, times = target_layers(classifier, images, "first"), {}
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        torch.set_num_threads(threads)
        times[threads] = statistics.median(
            seconds({"": partial(loop, classifier, images, layers, 125, False)})[""]
        )
    return min(times, key=lambda threads: times[threads])


def matmul_peak() -> float:
    """GFLOP/s of a large matrix multiplication, the best of 20."""
    one, other = torch.randn(1536, 1536), torch.randn(1536, 1536)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(one, other)
        best = min(best, time.perf_counter() - start)
    return float(2 * 1536**3 / best / 1e9)


def flops(work: Work) -> float:
    """GFLOP of multiplications and additions in convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops() / 1e9)


def measure(name: str, which: str, count: int, rounds: int) -> Row:
    """All ways on one network: times, passes, work done, and what differs in the predictions."""
    classifier, images, _ = load(name, count)
    last = copy.deepcopy(classifier).to(memory_format=torch.channels_last)
    layers = target_layers(classifier, images, which)
    few, some = images[:BATCH], layers[:1]
    a = best_batch(lambda batch: partial(loop, classifier, few, some, batch, False))
    b = best_batch(lambda batch: partial(loop, last, few, some, batch, True))
    way = Exact(classifier, images[:4])
    works: dict[str, Work] = {
        "exact": partial(exact, way, images, layers),
        "loop": partial(loop, classifier, images, layers, a, False),
        "loop, channels last": partial(loop, last, images, layers, b, True),
        "captum": partial(captum_ablation, classifier, images, layers, a),
    }
    times = seconds(works, rounds)
    found, expected = works["exact"](), works["loop"]()
    labels = expected.argmax(-1)
    different = found.argmax(-1) != labels
    tied = margins(expected.flatten(0, 1), labels.flatten()).view_as(labels) <= 1e-4 * expected.abs().max()
    return {
        "times": times,
        "batches": {"loop": a, "loop, channels last": b},
        "neurons": sum(layer.channels for layer in layers),
        "gflop": {key: flops(works[key]) for key in ("exact", "loop")},
        "different": int((different & ~tied).sum()),
        "ties": int((different & tied).sum()),
        "error": float((found - expected).abs().max() / expected.abs().max()),
    }


def ratios(times: dict[str, list[float]], name: str) -> str:
    """How many times faster exact is, round by round: the median, and the extremes."""
    pairs = [one / own for one, own in zip(times[name], times["exact"], strict=True)]
    return f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"


def speed_rows(name: str, which: str, target: float, found: Row, peak: float) -> Row:
    times = found["times"]
    own = statistics.median(times["exact"])
    rate = found["gflop"]["exact"] / own
    return {
        "network": name,
        "neurons": f"{found['neurons']} ({which})",
        "exact, s": f"{own:.2f}",
        "loop (a), s": f"{statistics.median(times['loop']):.2f}, batch {found['batches']['loop']}",
        "faster than (a)": ratios(times, "loop"),
        "asked": f"{target:g}",
        "than channels last (b)": ratios(times, "loop, channels last"),
        "than captum (c)": ratios(times, "captum"),
        "GFLOP, exact / loop": f"{found['gflop']['exact']:.0f} / {found['gflop']['loop']:.0f}",
        "GFLOP/s of exact": f"{rate:.0f} ({rate / peak:.0%} of peak)",
        "predictions that differ": f"{found['different']}, and {found['ties']} ties",
    }


def speed_part(cache: Cache) -> str:
    threads = cache.get("threads", calibrated_threads)
    torch.set_num_threads(threads)
    peak = cache.get("peak", matmul_peak)
    rows = []
    for name, target in SUBJECTS.items():
        found = cache.get(f"speed {name}", partial(measure, name, "first", IMAGES, ROUNDS))
        rows.append(speed_rows(name, "first", target, found, peak))
    return f"""## Exact against loops

Nodal dropout of every channel of the layer on {IMAGES} clean images, 32 x 32 (MNIST 28 x 28), float32,
{threads} thread(s) (calibrated); the machine multiplies matrices at {peak:.0f} GFLOP/s. Passes of the loops:
neurons x images. (a) a hook, the whole network, at its best batch of {", ".join(map(str, LOOP_BATCHES))};
(b) the same in channels_last; (c) captum's LayerFeatureAblation at the batch of (a). Ratios are medians of
{ROUNDS} rounds, the ways by turns, with the extremes. Predictions are compared with those of (a); a tie is a
margin below 1e-4 of the largest logit.

{table(rows)}"""


def layers_part(cache: Cache) -> str:
    torch.set_num_threads(cache.get("threads", calibrated_threads))
    found = cache.get("speed resnet20 all", partial(measure, "resnet20", "all", 125, 1))
    rows = [speed_rows("resnet20", "all", 2.2, found, cache.get("peak", matmul_peak))]
    return f"""## All layers

The same over all convolutions, 125 images, one round after one that warms up.

{table(rows)}"""


def linear_part(cache: Cache) -> str:
    torch.set_num_threads(cache.get("threads", calibrated_threads))
    rows = []
    for name in SUBJECTS:
        for size in SIZES:
            found = cache.get(f"linear {name} {size}", partial(timed_at, name, size))
            rows.append(
                {
                    "network": name,
                    "images": str(size),
                    "exact, ms per image": f"{1000 * found['exact'] / size:.2f}",
                    "loop (a), ms per image": f"{1000 * found['loop'] / size:.2f}",
                    "scaled to 10,000 images: exact / loop, s": (
                        f"{found['exact'] * 10_000 / size:.0f} / {found['loop'] * 10_000 / size:.0f}"
                    ),
                }
            )
    return f"""## Linear in the images

One round after one that warms up. The last column is scaled, not measured.

{table(rows)}"""


def timed_at(name: str, size: int) -> dict[str, float]:
    classifier, images, _ = load(name, size)
    layers = target_layers(classifier, images, "first")
    way = Exact(classifier, images[:4])
    works: dict[str, Work] = {
        "exact": partial(exact, way, images, layers),
        "loop": partial(loop, classifier, images, layers, 125, False),
    }
    return {key: statistics.median(values) for key, values in seconds(works, 1).items()}


PARTS = {"speed": speed_part, "layers": layers_part, "linear": linear_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all of them")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache/fragile-neurons/benchmarks/sweep.json"
    )
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # captum's remarks
    cache = Cache(given.cache)
    parts = [PARTS[name](cache) for name in given.parts]
    command = f"python benchmarks/sweep.py --parts {' '.join(given.parts)}"
    head = f"# Sweeps, measured\n\nMade by `{command}`. {machine(PACKAGES)}"
    given.output.write_text("\n\n".join([head, *parts]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
