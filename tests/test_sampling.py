"""Sampled sweeps: what is predicted against closed forms, estimates over many seeds against every answer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats as scipy_stats
from torch import nn

import fragile_neurons as fn
from fragile_neurons import workflows
from fragile_neurons.analysis import staging
from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.verdicts import _test
from fragile_neurons.interventions import drop, patch
from fragile_neurons.neurons import executed_layers
from fragile_neurons.runs.engines import local
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import make_plan
from fragile_neurons.stats import FEWEST_FLIPS, sampled_difference
from fragile_neurons.sweeps.answers import Answer, Before
from fragile_neurons.sweeps.choice import choose_way
from fragile_neurons.sweeps.exact import Exact
from fragile_neurons.sweeps.observed import Dropped
from fragile_neurons.sweeps.pairs import Pairs
from fragile_neurons.sweeps.reference import Reference
from fragile_neurons.sweeps.sampling import Design, FirstOrder, Odds, Sample

SEEDS = 500
IMAGES = 1_000
NEURONS = 16
STANDARD_ERROR = 0.006
LAYER = "layer"

Array = npt.NDArray[Any]


# --- what is predicted


def linear_network() -> fn.Classifier:
    """Two convolutions that work in place of nothing and bend nothing, and two classes."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 2))
    return fn.Classifier(module).eval()


@pytest.mark.parametrize("name", ["0", "1"])
@pytest.mark.parametrize("what", ["zero", "constant", "patch"])
@pytest.mark.parametrize("sweep", ["exact", "reference"])
def test_of_a_linear_network_every_change_is_predicted_exactly(
    name: str, what: str, sweep: str, small_data: fn.ImageData
) -> None:
    classifier, (images, labels) = linear_network(), small_data[:]
    labels = labels % 2
    layer = next(layer for layer in executed_layers(classifier, images) if layer.name == name)
    site, channels = layer.site("conv"), [0, 2, 3]
    other = Exact(classifier, images).walk(images.flip(0), [site])
    replacements = {
        "zero": drop(0.0),
        "constant": drop([0.5] * layer.channels),
        "patch": patch(other.maps(site)),
    }
    replace = replacements[what]
    way = choose_way(classifier, [site], images, sweep).way
    changes, sizes = way.walk(images, [site]).first_order(site, channels, replace, labels)
    with torch.no_grad():
        before = Before(classifier(images), labels).margins
    everyone = torch.ones(len(channels), len(images), dtype=torch.bool)
    logits = (
        Exact(classifier, images).walk(images, [site]).logits(site, replace, Pairs.where(channels, everyone))
    )
    after = Before(torch.unflatten(logits, 0, everyone.shape), labels).margins
    torch.testing.assert_close(before + changes, after, atol=1e-5, rtol=1e-4)
    maps = Reference(classifier).walk(images, [site]).maps(site)[:, channels].transpose(0, 1)
    everywhere = torch.arange(len(images)).expand(len(channels), -1)
    moves = replace(maps, torch.tensor(channels).unsqueeze(1).expand(everywhere.shape), everywhere) - maps
    torch.testing.assert_close(sizes, moves.flatten(2).square().sum(dim=2).sqrt())


@pytest.mark.parametrize("sweep", ["exact", "reference"])
def test_a_map_that_is_its_own_replacement_does_not_move(
    small_classifier: fn.Classifier, small_data: fn.ImageData, sweep: str
) -> None:
    images, labels = small_data[:]
    conv = small_classifier.module.get_submodule("conv1")
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    with torch.no_grad():
        conv.weight[2] = 0
        conv.bias[2] = 0
    site = executed_layers(small_classifier, images)[0].site("conv")
    way = choose_way(small_classifier, [site], images, sweep).way
    changes, sizes = way.walk(images, [site]).first_order(site, [0, 2], drop(0.0), labels)
    assert sizes.any(dim=1).tolist() == [True, False]
    assert not changes[1].any()


def test_exact_predicts_through_norm_and_activation(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    """conv1 is followed by norm, ReLU and pooling: predicted to first order only behind them."""
    images, labels = small_data[:]
    site = executed_layers(small_classifier, images)[0].site("conv")
    way = choose_way(small_classifier, [site], images, "exact").way
    pairs = Pairs.of([0, 1, 2, 3], torch.arange(len(images)))
    logits = way.walk(images, [site]).logits(site, drop(0.0), pairs).view(4, len(images), -1)
    with torch.no_grad():
        actual = Before(logits, labels).margins - Before(small_classifier(images), labels).margins
    errors = []
    for one in (way, Reference(small_classifier)):
        changes, _ = one.walk(images, [site]).first_order(site, [0, 1, 2, 3], drop(0.0), labels)
        errors.append(float((changes - actual).square().mean()))
    assert errors[0] < 0.9 * errors[1]


# --- estimates: a pool of images of which every answer is known


class Pool:
    """Margins before, predicted changes and margins after; predictions of two classes, right above 0."""

    def __init__(self, prediction: str) -> None:
        generator = np.random.default_rng(1)
        self.margins = generator.normal(2.0, 2.5, IMAGES)
        size = np.geomspace(0.05, 3.0, NEURONS)[:, None]
        told = generator.normal(-0.3, 1.0, (NEURONS, IMAGES)) * size
        error = generator.standard_t(4, (NEURONS, IMAGES)) * size * 0.6
        self.after = self.margins + 0.8 * told + error
        self.changes = {"true": told, "negated": -told, "constant": np.ones_like(told)}[prediction]
        self.drop = ((self.margins > 0).astype(float) - (self.after > 0)).mean(axis=1)
        self.margin_drop = (self.margins - self.after).mean(axis=1)

    def predicted(self, rows: Array) -> FirstOrder:
        changes = self.changes[:, rows]
        return FirstOrder(self.margins[rows], changes, changes != 0, np.ones(len(rows), bool))

    def design(self) -> Design:
        rows = np.arange(256)
        odds = Odds.learn(
            self.predicted(rows), self.after[:, rows], images=IMAGES, standard_error=STANDARD_ERROR
        )
        return Design(tuple(range(NEURONS)), {"clean": odds})

    def answer(self, design: Design, seed: int, rows: Array) -> tuple[Answer, int]:
        """The estimates for these images from one draw; and of how many pairs they are made."""
        channels = list(range(NEURONS))
        sample = Sample({LAYER: design}, seed, np.arange(len(rows)))
        drawn = sample.draw(LAYER, channels, {"clean": self.predicted(rows)})["clean"]
        asked = torch.from_numpy(drawn.drawn)
        channel, image = np.nonzero(drawn.drawn)
        labels = torch.zeros(len(rows), dtype=torch.int64)
        logits = torch.from_numpy(_two_logits(self.after[channel, rows[image]]))
        before = Before(torch.from_numpy(_two_logits(self.margins[rows])), labels)
        return Answer.of_pairs(logits, before, before, asked, drawn), int(asked.sum())


def _two_logits(margins: Array) -> Array:
    return np.stack([margins, np.zeros_like(margins)], axis=-1).astype(np.float32)


WORSE = [pytest.param(name, marks=pytest.mark.slow) for name in ("negated", "constant")]


@pytest.fixture(scope="module", params=["true", *WORSE])
def pool(request: pytest.FixtureRequest) -> Pool:
    return Pool(request.param)


def test_estimates_are_unbiased_whatever_is_predicted(pool: Pool) -> None:
    """Over 500 draws on the same images, drops and margin drops; and their sampling errors are as said."""
    design, rows = pool.design(), np.arange(IMAGES)
    right = (pool.margins > 0)[:, None]
    drops, margin_drops, errors = [], [], []
    for seed in range(SEEDS):
        answer, _ = pool.answer(design, seed, rows)
        change = right.astype(np.float32) - answer.right
        drops.append(change.mean(axis=0, dtype=np.float64))
        margin_drops.append((pool.margins[:, None] - answer.margin).mean(axis=0))
        errors.append([_test(change[:, neuron], 50.0)[3] for neuron in range(NEURONS)])
    for found, truth in ((drops, pool.drop), (margin_drops, pool.margin_drop)):
        noise = np.std(found, axis=0) / np.sqrt(SEEDS) + 1e-7  # the sums are float32
        z = (np.mean(found, axis=0) - truth) / noise
        assert np.abs(z).max() < 4
        assert abs(z.mean()) < 4 / np.sqrt(NEURONS)
    said = np.sqrt((np.array(errors) ** 2).mean(axis=0))
    np.testing.assert_allclose(said, np.std(drops, axis=0), rtol=0.2, atol=2e-5)


def test_the_sampling_error_is_what_was_asked_for_and_few_pairs_are_asked() -> None:
    pool = Pool("true")
    design, rows = pool.design(), np.arange(IMAGES)
    drops, asked = [], 0
    for seed in range(200):
        answer, pairs = pool.answer(design, seed, rows)
        drops.append(answer.right.mean(axis=0, dtype=np.float64))
        asked += pairs
    assert np.std(drops, axis=0).max() < 1.2 * STANDARD_ERROR
    assert np.mean(np.std(drops, axis=0) < STANDARD_ERROR) > 0.9
    share = asked / 200 / pool.after.size
    assert share < 0.45
    flips = ((pool.margins > 0) != (pool.after > 0)).mean(axis=1)
    blind = np.sqrt(flips * (1 / share - 1) / IMAGES)  # what as many pairs would err by, drawn as they come
    assert blind.max() > 2 * STANDARD_ERROR


@pytest.mark.slow
def test_intervals_cover_the_drop_on_new_images(pool: Pool) -> None:
    """500 new sets of images from the pool, each sampled anew: 95 % intervals against the pool's drops."""
    design, generator = pool.design(), np.random.default_rng(2)
    many: list[bool] = []
    few: list[bool] = []
    for seed in range(SEEDS):
        rows = generator.integers(0, IMAGES, IMAGES)
        answer, _ = pool.answer(design, seed, rows)
        change = (pool.margins[rows] > 0)[:, None].astype(np.float32) - answer.right
        for neuron in range(NEURONS):
            _, low, high, _ = _test(change[:, neuron], float(answer.heaviest[0, neuron]))
            met = np.count_nonzero(change[:, neuron])
            (many if met >= FEWEST_FLIPS else few).append(low <= pool.drop[neuron] <= high)
    assert 0.93 <= np.mean(many) <= 0.97
    assert not few or np.mean(few) >= 0.93
    assert len(many) > 16 * SEEDS / 2


# --- what a design asks


def told(margins: Array, changes: Array, sizes: Array | None = None) -> FirstOrder:
    """Of every image; as large as the changes, if nothing else is said."""
    return FirstOrder(
        margins, changes, np.abs(changes) if sizes is None else sizes, np.ones(len(margins), bool)
    )


def learn(pilot: FirstOrder, after: Array) -> Odds:
    return Odds.learn(pilot, after, images=10_000, standard_error=0.001)


def test_likely_flips_are_asked_where_the_pilot_had_none() -> None:
    """The pilot's images are far from any other class, so that its budget is kept by asking nothing."""
    generator = np.random.default_rng(0)
    changes = generator.normal(0, 1, (64, 256))
    odds = learn(told(np.full(256, 50.0), changes), 50 + changes + generator.normal(0, 0.1, changes.shape))
    later = told(np.full(2, 0.5), np.array([-3.0, 3.0]) * np.ones((64, 1)))
    asked = odds.probabilities(later)
    assert asked[:, 0].min() > 0.99  # wrong for sure
    np.testing.assert_array_equal(asked[:, 1], odds.floor)


@pytest.mark.parametrize("grows", [False, True])
def test_errors_that_grow_with_the_change_are_told_from_those_that_do_not(grows: bool) -> None:
    generator = np.random.default_rng(0)
    sizes = generator.lognormal(0, 0.7, (16, 256)) * np.geomspace(0.1, 10, 16)[:, None]
    scale = sizes if grows else np.broadcast_to(sizes.mean(axis=1, keepdims=True), sizes.shape)
    changes, margins = generator.normal(0, 1, sizes.shape), generator.normal(3, 2, 256)
    after = margins + changes + scale * generator.normal(0, 1, sizes.shape)
    found = learn(told(margins, changes, sizes), after).expected_errors(told(margins, changes, sizes))
    large = sizes > np.median(sizes, axis=1, keepdims=True)
    for part in (large, ~large):
        said, true = (np.sqrt((one**2 * part).sum(axis=1) / part.sum(axis=1)) for one in (found, scale))
        assert 0.8 < np.median(said / true) < 1.25


def test_errors_are_those_on_images_from_which_nothing_was_learnt() -> None:
    """One large error of a channel is as large beside the others: it did not widen what it is measured by."""
    generator = np.random.default_rng(0)
    margins, changes = generator.normal(1, 1, 256), generator.normal(0, 1, (4, 256))
    error = generator.normal(0, 0.1, changes.shape)
    error[2, 77] = 50
    odds = learn(told(margins, changes), margins + changes + error)
    assert odds.errors[-1] > 10 * np.sqrt(256)  # in units of a scale of its own it would be below the root
    assert len(odds.errors) == changes.size
    changes[1], error[1] = 0, generator.normal(0, 1e-7, 256)  # dead but for rounding,
    changes[1, 8], error[1, 8] = -1, 0.3  # and for one image: of one half
    one = learn(told(margins, changes), margins + changes + error)
    assert np.abs(one.errors).max() == pytest.approx(np.abs(odds.errors).max(), rel=0.01)


def test_flips_beyond_every_error_of_the_pilot_get_rarer_with_the_distance() -> None:
    generator = np.random.default_rng(0)
    changes = generator.normal(0, 1, (4, 256))
    odds = learn(told(np.full(256, 3.0), changes), 3 + changes + generator.normal(0, 0.1, changes.shape))
    there = np.array([1.0, 2.0, -1.0, -2.0])  # margins, where nothing is predicted
    flips = odds.flips(told(there, np.zeros((4, 4)), np.ones((4, 4))))
    reach = (
        np.array([-odds.errors[0], odds.errors[-1]]) * odds.expected_errors(told(there, changes[:, :4]))[0, 0]
    )
    assert (reach < 0.5).all()
    np.testing.assert_allclose(flips[:, [1, 3]] / flips[:, [0, 2]], 1 / 16, rtol=0.3)
    assert flips.max() < 0.5 / 1025
    within = odds.flips(told(np.full(1, 0.05), np.zeros((4, 1)), np.ones((4, 1))))
    assert (within > 0.1).all()


def test_where_most_pairs_would_be_asked_all_are() -> None:
    """One neuron makes noise of every margin, the other next to none."""
    generator = np.random.default_rng(0)
    margins, changes = generator.normal(1, 1, 256), generator.normal(0, 1, (2, 256))
    pilot = told(margins, changes)
    odds = learn(pilot, margins + generator.normal(0, 1, changes.shape) * [[9.0], [1e-3]])
    assert (odds.probabilities(pilot)[0] == 1).all()
    assert odds.probabilities(pilot)[1].mean() < 0.2


def test_of_the_top_neurons_only_estimates_are_asked_again() -> None:
    """Of eight neurons of rising drops two of the five largest were asked of every image."""
    right = (np.arange(10)[:, None] >= np.arange(8)).astype(np.float32)  # of ten images neuron k breaks k
    none, heaviest = np.zeros((0, 10, 8), np.float32), np.full((2, 8), 25, np.float32)
    heaviest[:, [1, 4, 6]] = 1
    dropped = Dropped(
        **{f"clean_{name}": right for name in ("right", "margin", "move")},
        **{f"transfer_{name}": none for name in ("right", "margin", "move", "heaviest")},
        **{f"adv_{name}": none for name in ("right", "margin", "heaviest")},
        clean_heaviest=heaviest,
        zero_gradient=right,
    )
    whole = Predictions(
        label=np.zeros(10, np.int64),
        prediction=np.zeros(10, np.int64),
        margin=np.ones(10, np.float32),
        largest_logit=np.ones(10, np.float32),
        zero_gradient=np.zeros(10, np.bool_),
        adv_prediction=np.zeros((0, 10), np.int64),
        adv_margin=np.zeros((0, 10), np.float32),
    )
    assert staging.top_neurons(whole, dropped).tolist() == [3, 5, 7]
    dropped = replace(dropped, transfer_right=right[np.newaxis])
    asked = replace(dropped, **{f"clean_{name}": 2 + right for name in ("right", "margin", "move")})
    again = dropped.refined(np.array([3, 5]), asked.of_neurons(np.array([3, 5])))
    assert (again.clean_right != right).any(axis=0).nonzero()[0].tolist() == [3, 5]
    assert (again.clean_margin[:, [3, 5]] == 2 + right[:, [3, 5]]).all()
    assert (again.transfer_right == right).all()


# --- a network, in stages


@pytest.fixture
def many() -> fn.ImageData:
    """320 blobs in noise, as the small data."""
    generator = np.random.default_rng(3)
    labels = np.arange(320) % 3
    images = generator.integers(0, 150, (320, 1, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label : 2 * label + 3, 1:7] += 90
    return fn.ImageData(images, labels.astype(np.int64), ("one", "two", "three"), name="many blobs")


@pytest.fixture
def small_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pilot of 64 images."""
    monkeypatch.setattr(staging, "PILOT_IMAGES", 64)


OPTIONS: dict[str, Any] = {"layer": "all", "epsilons": ["0.1"], "batch_size": 64}


@pytest.mark.usefixtures("small_pilot")
def test_sampled_drops_are_the_exact_ones_give_or_take_their_errors(
    small_classifier: fn.Classifier, many: fn.ImageData
) -> None:
    """Clean, transferred and made anew; over 8 draws of the sample."""
    exact = fn.dropout(small_classifier, many, sweep="exact", **OPTIONS)
    draws = [
        fn.dropout(small_classifier, many, sweep="sampled", standard_error=0.02, seed=seed, **OPTIONS)
        for seed in range(8)
    ]
    sampled = np.isfinite([draw.clean.sampling_se for draw in draws]).any(axis=0)
    assert sampled.sum() >= 5
    for truth, found, tolerance in (
        (exact.clean.drop, [draw.clean.drop for draw in draws], 0.02),
        (exact.adv[0].drop, [draw.adv[0].drop for draw in draws], 0.02),
        (exact.transfer_drop[0], [draw.transfer_drop[0] for draw in draws], 0.02),
        (exact.margin_drop, [draw.margin_drop for draw in draws], 0.1),
    ):
        np.testing.assert_allclose(np.mean(found, axis=0), truth, atol=tolerance)
    assert any((draw.clean.drop != exact.clean.drop).any() for draw in draws)
    top = np.argsort(-np.abs(exact.clean.drop))[:2]
    for draw in draws:
        np.testing.assert_array_equal(draw.clean.drop[top], exact.clean.drop[top])


@pytest.mark.usefixtures("small_pilot")
def test_sampled_patching_is_the_exact_one_give_or_take_its_error(
    small_classifier: fn.Classifier, many: fn.ImageData
) -> None:
    exact = fn.patching(small_classifier, many, sweep="exact", **OPTIONS)
    draws = [
        fn.patching(small_classifier, many, sweep="sampled", standard_error=0.02, seed=seed, **OPTIONS)
        for seed in range(8)
    ]
    for name in ("rescue", "inject"):
        truth, found = getattr(exact, name), np.array([getattr(draw, name) for draw in draws])
        np.testing.assert_allclose(found.mean(axis=0), truth, atol=0.03)
        low, high = getattr(draws[0], f"{name}_low"), getattr(draws[0], f"{name}_high")
        assert ((low <= truth) & (truth <= high)).mean() > 0.9
    assert (np.array([draw.inject for draw in draws]) != exact.inject).any()


@pytest.mark.usefixtures("small_pilot")
def test_a_sampled_run_is_the_same_whatever_its_units_and_kills(
    small_classifier: fn.Classifier, many: fn.ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS | {"sweep": "sampled", "standard_error": 0.02}
    whole = fn.analyze(small_classifier, many, output=tmp_path / "whole", **options)
    assert whole.neurons["sampling_se"].null_count < whole.neurons.num_rows
    with Ledger(whole.folder) as ledger:
        kinds = [unit.kind for unit in ledger.units()]
    monkeypatch.setattr(workflows, "make_plan", partial(make_plan, neurons_per_unit=3))
    stops = [kinds.index(kind) + 1 for kind in ("drops", "design", "top", "refined", "orders", "curves")]
    for before, stop in pairwise([0, *stops]):
        left = [stop - before]

        def stopping(*arguments: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return execute_unit(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(local, "execute_unit", stopping)
            with pytest.raises(KeyboardInterrupt):
                fn.analyze(small_classifier, many, output=tmp_path / "killed", **options)
    again = fn.analyze(small_classifier, many, output=tmp_path / "killed", **options)
    for name in ("neurons.csv", "cumulative.parquet"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert "estimates from a sample" in (again.folder / "summary.md").read_text(encoding="utf-8")


def test_few_flips_have_exact_bounds() -> None:
    """With weights of one the bounds are those of a Poisson count; with 20 flips the z-test's."""
    ones, none = np.ones(7), np.zeros(0)
    _, low, high = sampled_difference(ones, none, 100, heaviest=1.0)
    garwood = (scipy_stats.chi2.ppf(0.025, 14) / 200, scipy_stats.chi2.ppf(0.975, 16) / 200)
    nothing = scipy_stats.chi2.ppf(0.975, 2) / 200  # what may have been gained unseen
    assert high == pytest.approx(0.07 + np.hypot(garwood[1] - 0.07, 0))
    assert low == pytest.approx(0.07 - np.hypot(0.07 - garwood[0], nothing))
    p, low, high = sampled_difference(2 * np.ones(30), np.ones(10), 1000, heaviest=25.0)
    error = np.sqrt(30 * 4 + 10 - 50**2 / 1000)
    assert p == pytest.approx(2 * scipy_stats.norm.sf(50 / error))
    assert (low, high) == pytest.approx(((50 - 1.959964 * error) / 1000, (50 + 1.959964 * error) / 1000))
    # nothing met at a probability of one in 25: so many may be there that they would be met for sure
    _, low, high = sampled_difference(none, none, 1000, heaviest=25.0)
    assert high == pytest.approx(25 * scipy_stats.chi2.ppf(0.975, 2) / 2000)
    assert low == -high
