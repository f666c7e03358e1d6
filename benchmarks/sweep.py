"""How fast sweeps are: the exact way beside the loops that people write today.

    python benchmarks/sweep.py [--parts speed layers ...] [--output benchmarks/sweep.md]

All ways are timed in one process, round by round. Each measurement is kept in a cache, so that a killed
run goes on; delete the cache to measure again. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import torch
import torchvision
from bench import Cache, Row, machine, spread, table
from captum.attr import LayerFeatureAblation
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

import fragile_neurons as fn
from fragile_neurons.analysis.dropout import observe_drops
from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.selection import select
from fragile_neurons.data.catalogue import find_dataset
from fragile_neurons.interventions import drop, intervening
from fragile_neurons.losses import margins
from fragile_neurons.neurons import Layer, executed_layers
from fragile_neurons.sweeps.baseline import measure_baseline
from fragile_neurons.sweeps.exact import Exact
from fragile_neurons.sweeps.observed import Dropped
from fragile_neurons.sweeps.pairs import Pairs
from fragile_neurons.sweeps.reference import Reference
from fragile_neurons.sweeps.sampling import PILOT_IMAGES, STANDARD_ERROR, FirstOrder, Odds
from fragile_neurons.sweeps.way import Way
from fragile_neurons.training.recipes import make_schedule
from fragile_neurons.training.train import train_model

IMAGES = 500
BATCH = 250  # of the exact way: as the command, but a divisor of the images
LOOP_BATCHES = (50, 125, 250)
ROUNDS = 3
SIZES = (250, 500, 1000)
NEURONS = (8, 16, 32, 64)
ANEW = [Fraction(1, 10)]
EPOCHS = 3
KEPT = Path.home() / ".cache/fragile-neurons/benchmarks"
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
Shape = Sequence[int]


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
    """The loop that people write: a hook, the whole network, one neuron after another.

    (1 + neurons, images, classes): first without any, which drops are measured from.
    """
    layout = torch.channels_last if last else torch.contiguous_format

    def one_pass() -> torch.Tensor:
        starts = range(0, len(images), batch)
        parts = [images[start : start + batch].contiguous(memory_format=layout) for start in starts]
        return torch.cat([classifier(part) for part in parts])

    with torch.no_grad():
        found = [one_pass()]
        for layer in layers:
            for channel in range(layer.channels):
                with intervening(classifier, layer.site("conv"), [channel], drop(0.0)):
                    found.append(one_pass())
    return torch.stack(found)


def exact(way: Exact, images: torch.Tensor, layers: Sequence[Layer]) -> torch.Tensor:
    """The same by the exact way."""
    sites = [layer.site("conv") for layer in layers]
    batches = []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        walk = way.walk(part, sites)
        of_batch: list[torch.Tensor] = []
        for layer, site in zip(layers, sites, strict=True):
            kept = walk.kept(site)  # at each site, as a sweep has it
            pairs = Pairs.of(list(range(layer.channels)), torch.arange(len(part)))
            dropped = torch.unflatten(walk.logits(site, drop(0.0), pairs), 0, (layer.channels, -1))
            of_batch += [dropped] if of_batch else [kept.unsqueeze(0), dropped]
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
    times = seconds({str(batch): make(batch) for batch in LOOP_BATCHES})
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


def fused_flops(maps: Shape, weight: Shape, *_: object, out_shape: Shape, **__: object) -> int:
    """Of a convolution that rectifies at once."""
    return conv_flop_count(list(maps), list(weight), list(out_shape))


def adding_flops(_added: Shape, *others: Any, **named: Any) -> int:
    """Of one that adds at once: what it is added to comes first."""
    return fused_flops(*others, **named)


def linear_flops(rows: Shape, weight: Shape, *_: object, **__: object) -> int:
    """Of a linear layer."""
    return 2 * math.prod(rows) * weight[0]


def flops(work: Work) -> float:
    """GFLOP of multiplications and additions in convolutions and matrix products."""
    ours = torch.ops.mkldnn
    formulas = {
        ours._convolution_pointwise: fused_flops,
        ours._convolution_pointwise_: adding_flops,
        ours._linear_pointwise: linear_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
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
        "still": float((found[1:] == found[0]).all(dim=-1).float().mean()),
        "different": int((different & ~tied).sum()),
        "ties": int((different & tied).sum()),
        "error": float((found - expected).abs().max() / expected.abs().max()),
    }


def ratios(times: dict[str, list[float]], name: str) -> str:
    """How many times faster exact is, round by round: the median, and the extremes."""
    pairs = [one / own for one, own in zip(times[name], times["exact"], strict=True)]
    return spread(pairs)


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
        "nothing moves": f"{found['still']:.1%}",
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
{threads} thread(s) (calibrated); the machine multiplies matrices at {peak:.0f} GFLOP/s. Every way also passes
the images through the network as it is, from which drops are measured: passes of the loops, (1 + neurons) x
images. Of pairs in which nothing moves exact knows the answer from that pass; how many these are, the table
says. (a) a hook, the whole network, at its best batch of {", ".join(map(str, LOOP_BATCHES))};
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


def cost_part(cache: Cache) -> str:
    """Against images, neurons and depth: tables, and a picture of all three."""
    torch.set_num_threads(cache.get("threads", calibrated_threads))
    images = [
        {"network": name, "images": size, **cache.get(f"images {name} {size}", partial(timed_at, name, size))}
        for name in SUBJECTS
        for size in SIZES
    ]
    neurons = [
        {
            "network": "squeezenet1_1",
            "neurons": count,
            **cache.get(f"neurons {count}", partial(timed_of, count)),
        }
        for count in NEURONS
    ]
    depth = cache.get("depth resnet20", timed_by_depth)
    picture(images, neurons, depth)
    shown = [
        {
            "network": row["network"],
            "images": row["images"],
            "exact, ms per image": f"{1000 * row['exact'] / row['images']:.2f}",
            "loop (a), ms per image": f"{1000 * row['loop'] / row['images']:.2f}",
            "scaled to 10,000 images: exact / loop, s": (
                f"{row['exact'] * 10_000 / row['images']:.0f} / {row['loop'] * 10_000 / row['images']:.0f}"
            ),
        }
        for row in images
    ]
    by_neuron = [
        {"neurons": row["neurons"], "exact, s": f"{row['exact']:.2f}", "loop (a), s": f"{row['loop']:.2f}"}
        for row in neurons
    ]
    by_depth = [
        {
            "layer": row["layer"],
            "exact, ms per neuron and image": f"{row['exact']:.3f}",
            "loop (a), ms": f"{row['loop']:.3f}",
        }
        for row in depth
    ]
    return f"""## What it costs

![Seconds against images and neurons, milliseconds against depth](sweep.svg)

Against images, one round after one that warms up; the last column is scaled, not measured.

{table(shown)}

Against neurons: so many channels of the first layer of squeezenet1_1, 250 images.

{table(by_neuron)}

Against depth: each layer of resnet20, 8 neurons, 256 images. The loop runs the whole network wherever the
neuron is.

{table(by_depth)}"""


def picture(images: list[Row], neurons: list[Row], depth: list[Row]) -> None:
    """The three tables as one picture beside the page."""

    def long(rows: Sequence[Row], axis: str) -> list[Row]:
        return [
            {"x": row[axis], "cost": row[way], "way": way, "network": row.get("network", "")}
            for row in rows
            for way in ("exact", "loop")
        ]

    def chart(rows: list[Row], x: alt.X, y: str) -> alt.Chart:
        lines = alt.Chart(alt.InlineData(values=rows), width=220, height=200).mark_line(point=True)
        color = alt.Color("way:N", title=None)
        found: alt.Chart = lines.encode(x=x, y=alt.Y("cost:Q", title=y), color=color, detail="network:N")
        return found

    panels = alt.hconcat(
        chart(long(images, "images"), alt.X("x:Q", title="images"), "seconds, a line per network"),
        chart(long(neurons, "neurons"), alt.X("x:Q", title="neurons"), "seconds, squeezenet1_1"),
        chart(
            long([row | {"place": place} for place, row in enumerate(depth)], "place"),
            alt.X("x:Q", title="layer of resnet20, from the input on"),
            "ms per neuron and image",
        ),
    )
    panels.save(str(Path(__file__).with_suffix(".svg")))


def timed_at(name: str, size: int) -> dict[str, float]:
    classifier, images, _ = load(name, size)
    return timed_pair(classifier, images, target_layers(classifier, images, "first"))


def timed_of(count: int) -> dict[str, float]:
    classifier, images, _ = load("squeezenet1_1", 250)
    (layer,) = target_layers(classifier, images, "first")
    return timed_pair(classifier, images, [dataclasses.replace(layer, channels=count)])


def timed_pair(classifier: fn.Classifier, images: torch.Tensor, layers: Sequence[Layer]) -> dict[str, float]:
    way = Exact(classifier, images[:4])
    works: dict[str, Work] = {
        "exact": partial(exact, way, images, layers),
        "loop": partial(loop, classifier, images, layers, 125, False),
    }
    return {key: statistics.median(values) for key, values in seconds(works, 1).items()}


def timed_by_depth() -> list[Row]:
    classifier, images, _ = load("resnet20", 256)
    rows = []
    for layer in target_layers(classifier, images, "all"):
        found = timed_pair(classifier, images, [dataclasses.replace(layer, channels=8)])
        rows.append(
            {"layer": layer.name} | {way: 1000 * value / (8 * len(images)) for way, value in found.items()}
        )
    return rows


def sampled_part(cache: Cache) -> str:
    """The whole sampled sweep of 10,000 images against the loop on a few of them, scaled."""
    torch.set_num_threads(cache.get("threads", calibrated_threads))
    rows = []
    subjects = (("resnet20", "all", 125, 1, 20.0), ("resnet18", "first", 500, ROUNDS, 5.0))
    for name, which, few, rounds, target in subjects:
        found = cache.get(f"sampled {name}", partial(measure_sampled, name, which, few, rounds))
        true = cache.get(f"census {name}", partial(census, name, which))
        scaled = [statistics.mean(two) * 10_000 / few for two in pairwise(found["loops"])]
        times = [one / own for one, own in zip(scaled, found["samples"], strict=True)]
        rows.append(
            {
                "network": name,
                "neurons": f"{found['neurons']} ({which})",
                "clean accuracy": f"{found['accuracy']:.1%}",
                "sampled, 10,000 images, s": f"{statistics.median(found['samples']):.1f}",
                "loop (a), scaled (from images), s": f"{statistics.median(scaled):.0f} ({few})",
                "faster than (a)": spread(times),
                "asked": f"{target:g}",
                "standard error, pp: median, largest": f"{true['median']:.3f}, {true['largest']:.3f}",
                "neurons above 0.1 pp": str(true["above"]),
                "as estimated: median, largest": f"{found['median']:.3f}, {found['largest']:.3f}",
                "above 0.1 pp": str(found["above"]),
            }
        )
    return f"""## Sampled

Clean drops on the 10,000 test images of CIFAR-10 with `--standard-error 0.1pp`: everything from the
predictions on, pilot, backward passes and the top neurons included. (a) is the loop at its best batch, on
the images said, the mean of once before a sample and once after it, scaled. resnet20 is one round, resnet18
the median of {ROUNDS}, with the extremes. The standard error of the sample's drops is first that of all
draws: every pair is asked exactly, and of each flip it is known with what probability the sample would ask
it. Then as the sample itself estimates it, from the flips it met: a rare one counts for many. resnet18 is
torchvision's, trained for {EPOCHS} epochs by this benchmark: the flips of an untrained network say nothing.

{table(rows)}"""


def subject_of_sample(name: str) -> tuple[fn.Classifier, fn.ImageData]:
    classifier = fn.load_model("cifar10-resnet20") if name == "resnet20" else trained(name)
    return classifier.eval(), fn.load_data("cifar10", limit=10_000)


def census(name: str, which: str) -> dict[str, float]:
    """The standard errors, in percentage points, of all draws that the design of a sample allows."""
    classifier, data = subject_of_sample(name)
    images, labels = data[:256]
    layers = target_layers(classifier, images, which)
    way, sites = Exact(classifier, images[:4]), [layer.site("conv") for layer in layers]
    told: dict[str, list[FirstOrder]] = {layer.name: [] for layer in layers}
    after: dict[str, list[np.ndarray[Any, Any]]] = {layer.name: [] for layer in layers}
    for start in range(0, len(data), 256):
        images, labels = data[start : start + 256]
        with torch.no_grad():
            before = margins(classifier(images), labels).double().numpy()
        walk, everyone = way.walk(images, sites), np.ones(len(images), np.bool_)
        for layer, site in zip(layers, sites, strict=True):
            channels = list(range(layer.channels))
            changes, sizes = (
                one.double().numpy() for one in walk.first_order(site, channels, drop(0.0), labels)
            )
            told[layer.name].append(FirstOrder(before, changes, sizes, everyone))
            logits = walk.logits(site, drop(0.0), Pairs.of(channels, torch.arange(len(images))))
            found = margins(logits, labels.repeat(layer.channels)).view(layer.channels, -1)
            after[layer.name].append(found.double().numpy())
    return of_all_draws([(told[layer.name], after[layer.name]) for layer in layers])


def of_all_draws(layers: Sequence[tuple[list[FirstOrder], list[np.ndarray[Any, Any]]]]) -> dict[str, float]:
    """The standard errors, from what is predicted of each layer and the margins afterwards, by batches."""
    errors = []
    for told, after in layers:
        everything, truth = FirstOrder.join(told), np.concatenate(after, axis=1)
        count, pilot = truth.shape[1], everything.first_images(PILOT_IMAGES)
        odds = Odds.learn(pilot, truth[:, :PILOT_IMAGES], images=count, standard_error=STANDARD_ERROR)
        rest = everything.of_images(np.arange(PILOT_IMAGES, count))
        asked, flips = odds.probabilities(rest), (truth[:, PILOT_IMAGES:] > 0) != (rest.margins > 0)
        errors.append(100 * np.sqrt((flips * (1 - asked) / asked).sum(axis=1)) / count)
    whole = np.concatenate(errors)
    return {
        "median": float(np.median(whole)),
        "largest": float(whole.max()),
        "above": int((whole > 100 * STANDARD_ERROR).sum()),
    }


def measure_sampled(name: str, which: str, few: int, rounds: int) -> Row:
    classifier, data = subject_of_sample(name)
    images, _ = data[:few]
    layers = target_layers(classifier, images, which)
    batch = best_batch(lambda size: partial(loop, classifier, images, layers[:1], size, False))
    work: dict[str, Work] = {"": partial(loop, classifier, images, layers, batch, False)}
    loops, samples = seconds(work, rounds=1)[""], []
    for _ in range(rounds):
        taken, predictions, dropped = timed_sample(classifier, data, which, ())
        samples.append(taken)
        loops += seconds(work, rounds=1)[""]
    return {
        "neurons": dropped.clean_right.shape[1],
        "accuracy": float(predictions.right.mean()),
        "samples": samples,
        "loops": loops,
        **as_estimated(predictions.right, dropped.clean_right),
    }


def timed_sample(
    classifier: fn.Classifier, data: fn.ImageData, which: str, epsilons: Sequence[Fraction]
) -> tuple[float, Predictions, Dropped]:
    """Seconds of a whole sampled sweep, attacked anew where there are epsilons, and its answers."""
    selection = select(classifier, data, layer=which)
    start = time.perf_counter()
    found = observe_drops(
        classifier,
        data,
        selection,
        sweep="sampled",
        replace="zero",
        epsilons=epsilons,
        mode="adaptive",
        batch_size=256,
    )
    return time.perf_counter() - start, *found


def as_estimated(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> dict[str, float]:
    """The standard errors that a sample says of itself. before: (n,) right; after: (n, neurons) estimates."""
    weights = np.abs(before[:, None].astype(np.float64) - after)
    errors = 100 * np.sqrt((weights * (weights - 1)).sum(axis=0)) / len(before)
    return {
        "median": float(np.median(errors)),
        "largest": float(errors.max()),
        "above": int((errors > 100 * STANDARD_ERROR).sum()),
    }


def trained(name: str) -> fn.Classifier:
    """A network of torchvision on CIFAR-10, trained once, briefly, and kept beside the measurements."""
    folder = KEPT / f"{name}-{EPOCHS}-epochs"
    if not (folder / "weights.safetensors").is_file():
        schedule = make_schedule(find_dataset("cifar10"), epochs=EPOCHS, seed=0)
        for _ in train_model(
            name, "cifar10", output=folder, schedule=schedule, command="benchmarks/sweep.py"
        ):
            pass
    return fn.load_model(name, weights=folder / "weights.safetensors", data=fn.load_data("cifar10", limit=10))


def adaptive_part(cache: Cache) -> str:
    """FGSM made anew without each neuron."""
    torch.set_num_threads(cache.get("threads", calibrated_threads))
    rows = []
    for name in SUBJECTS:
        images, neurons = (IMAGES, 32) if name == "mnist-cnn" else (250, 8)
        found = cache.get(f"adaptive {name}", partial(measure_adaptive, name, images, neurons))
        times = found["times"]
        rows.append(
            {
                "network": name,
                "neurons": neurons,
                "images": images,
                "exact, s": f"{statistics.median(times['exact']):.2f}",
                "loop, s": f"{statistics.median(times['loop']):.2f}, batch {found['batch']}",
                "faster": ratios(times, "loop"),
                "asked": "3" if name == "mnist-cnn" else "",
                "predictions that differ": f"{found['different']} of {neurons * images:,}",
            }
        )
    found, true = cache.get("sampled anew", sampled_anew), cache.get("census anew", census_anew)
    scaled = statistics.median(cache.kept["adaptive mnist-cnn"]["times"]["loop"]) * 10_000 / IMAGES
    sampled = {
        "network": "mnist-cnn",
        "neurons": 32,
        "accuracy under attack": f"{found['accuracy']:.1%}",
        "sampled, 10,000 images, s": f"{found['sampled']:.1f}",
        f"loop, scaled (from {IMAGES}), s": f"{scaled:.0f}",
        "faster": f"{scaled / found['sampled']:.2f}",
        "asked": "3",
        "standard error, pp: median, largest": f"{true['median']:.3f}, {true['largest']:.3f}",
        "as estimated: median, largest": f"{found['median']:.3f}, {found['largest']:.3f}",
    }
    return f"""## Attacked anew

FGSM 0.1 on the network without each neuron of the first layer: one pass forward, one back, one that judges.
The loop drops, attacks and evaluates, at its best batch. A gradient that is zero but for rounding may have
another sign.

{table(rows)}

The same by a sample, `--standard-error 0.1pp`, which answers for clean images and for the attack on the whole
network too, all that included; the loop answers for the attack made anew alone. Standard errors as above.

{table([sampled])}"""


def measure_adaptive(name: str, count: int, neurons: int) -> Row:
    classifier, images, labels = load(name, count)
    (layer,) = target_layers(classifier, images, "first")
    site = layer.site("conv")

    def anew(way: Way, batch: int, channels: int) -> torch.Tensor:
        found = []
        for start in range(0, len(images), batch):
            part, own = images[start : start + batch], labels[start : start + batch]
            pairs = Pairs.of(list(range(channels)), torch.arange(len(part)))
            logits = way.walk(part, [site]).attack(site, drop(0.0), pairs, own, ANEW).adversarial_logits
            found.append(torch.unflatten(logits, 1, (channels, -1)))
        return torch.cat(found, dim=2)

    reference = Reference(classifier)
    batch = best_batch(lambda size: partial(anew, reference, size, 2))
    works: dict[str, Work] = {
        "exact": partial(anew, Exact(classifier, images[:4]), BATCH, neurons),
        "loop": partial(anew, reference, batch, neurons),
    }
    times = seconds(works)
    found, expected = (work().argmax(dim=-1) for work in works.values())
    return {"times": times, "batch": batch, "different": int((found != expected).sum())}


def sampled_anew() -> Row:
    """The whole sampled sweep of 10,000 images, attacked anew at each pair that is asked."""
    classifier, data = fn.load_model("mnist-cnn").eval(), fn.load_data("mnist", limit=10_000)
    sampled, predictions, dropped = timed_sample(classifier, data, "first", ANEW)
    return {
        "accuracy": float(predictions.adv_right[0].mean()),
        "sampled": sampled,
        **as_estimated(predictions.adv_right[0], dropped.adv_right[0]),
    }


def census_anew() -> dict[str, float]:
    """As `census`, of predictions on the images that fool the network without the neuron."""
    classifier, data = fn.load_model("mnist-cnn").eval(), fn.load_data("mnist", limit=10_000)
    images, _ = data[:256]
    (layer,) = target_layers(classifier, images, "first")
    way, site, channels = Exact(classifier, images[:4]), layer.site("conv"), list(range(layer.channels))
    told: list[FirstOrder] = []
    after: list[np.ndarray[Any, Any]] = []
    for start in range(0, len(data), 256):
        images, labels = data[start : start + 256]
        whole, everyone = measure_baseline(classifier, images, labels, ANEW), np.ones(len(images), np.bool_)
        before = margins(whole.adversarial_logits[0], labels).double().numpy()
        walk = way.walk(whole.adversarial[0], [site])
        changes, sizes = (one.double().numpy() for one in walk.first_order(site, channels, drop(0.0), labels))
        told.append(FirstOrder(before, changes, sizes, everyone))
        pairs = Pairs.of(channels, torch.arange(len(images)))
        anew = way.walk(images, [site]).attack(site, drop(0.0), pairs, labels, ANEW)
        found = margins(anew.adversarial_logits[0], labels.repeat(layer.channels))
        after.append(found.view(layer.channels, -1).double().numpy())
    return of_all_draws([(told, after)])


def dtype_part(cache: Cache) -> str:
    """bfloat16 against float32, both by the exact way."""
    torch.set_num_threads(cache.get("threads", calibrated_threads))
    rows = []
    for name in SUBJECTS:
        found = cache.get(f"dtype {name}", partial(measure_dtype, name))
        rows.append(
            {
                "network": name,
                "float32, s": f"{statistics.median(found['times']['float32']):.2f}",
                "bfloat16, s": f"{statistics.median(found['times']['bfloat16']):.2f}",
                "faster": f"{found['faster']:.2f}",
                "predictions that differ": f"{found['different']:.2%}",
            }
        )
    return f"""## bfloat16

The same work in `--dtype bfloat16`, exact both times; a processor without instructions for it is slower.

{table(rows)}"""


def measure_dtype(name: str) -> Row:
    classifier, images, _ = load(name)
    layers = target_layers(classifier, images, "first")
    works: dict[str, Work] = {
        dtype: partial(exact, Exact(classifier.as_dtype(dtype), images[:4]), images, layers)
        for dtype in ("float32", "bfloat16")
    }
    times = seconds(works)
    full, half = (work().argmax(-1) for work in works.values())
    pairs = zip(times["float32"], times["bfloat16"], strict=True)
    return {
        "times": times,
        "faster": statistics.median(one / other for one, other in pairs),
        "different": float((full != half).float().mean()),
    }


def memory_part(cache: Cache) -> str:
    """The peak of a process of its own."""
    rows = []
    for neurons, images in ((32, 5_000), (64, 5_000), (64, 10_000)):
        found = cache.get(f"memory {neurons} {images}", partial(measure_memory, neurons, images))
        rows.append(
            {
                "neurons": neurons,
                "images": f"{images:,}",
                "resident at most, MB": f"{found['peak']:.0f}",
                "before the sweep, MB": f"{found['before']:.0f}",
            }
        )
    return f"""## Memory

Clean drops of the first layer of resnet18 on CIFAR-10, exact, batches of 256, each in a process of its own.

{table(rows)}"""


def measure_memory(neurons: int, images: int) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_of, neurons, images).result()


def peak_of(neurons: int, images: int) -> dict[str, float]:
    """Resident megabytes at most, before and after, in this process."""
    torch.manual_seed(0)
    classifier = fn.Classifier(torchvision.models.get_model("resnet18", weights=None, num_classes=10))
    data = fn.load_data("cifar10", limit=images)
    before = peak_megabytes()
    fn.dropout(classifier, data, neurons=str(neurons), epsilons=[])
    return {"before": before, "peak": peak_megabytes()}


def peak_megabytes() -> float:
    """Of this program alone: getrusage would count what it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


PARTS = {
    "speed": speed_part,
    "layers": layers_part,
    "sampled": sampled_part,
    "adaptive": adaptive_part,
    "dtype": dtype_part,
    "memory": memory_part,
    "cost": cost_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all of them")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--cache", type=Path, default=KEPT / "sweep.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # captum's remarks
    cache = Cache(given.cache)
    parts = [PARTS[name](cache) for name in given.parts]
    command = f"python benchmarks/sweep.py --parts {' '.join(given.parts)}"
    head = f"# Sweeps, measured\n\nMade by `{command}`. {machine(PACKAGES)}"
    given.output.write_text("\n\n".join([head, *parts]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
