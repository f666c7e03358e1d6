"""`harden` on small networks: what it leaves, what it refuses, and that a killed run resumes to the same."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small import small_images
from torch import nn

import fragile_neurons as fn
from fragile_neurons.attacks import autoattack
from fragile_neurons.folding import Changes, fold
from fragile_neurons.hardening import learn, search
from fragile_neurons.hardening.choose import Tried, keeping
from fragile_neurons.hardening.gains import Gains, Strength, proportional
from fragile_neurons.hardening.learn import (
    ALL_WEIGHTS,
    BATCH_NORMS,
    GAINS,
    between,
    make_learner,
    with_weights,
)
from fragile_neurons.interventions import scaling
from fragile_neurons.neurons import executed_layers
from fragile_neurons.runs import hardening
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.spec import Spec, make_spec, read_options
from fragile_neurons.runs.subject import open_spec
from fragile_neurons.stats import wilson

EPSILON = "0.05"
FILES = {
    "spec.toml",
    "summary.json",
    "summary.md",
    "report.html",
    "examples.npz",
    "run.db",
    "gains.csv",
    "hardened.safetensors",
    "hardened.json",
    "judgement.parquet",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AutoAttack, with two shuffles, and steps of 16 images."""
    monkeypatch.setattr(hardening, "CONTROLS", ("shuffled 0", "shuffled 1", "inverted", "uniform"))
    monkeypatch.setattr(autoattack, "is_installed", lambda: False)
    monkeypatch.setattr(hardening, "BATCH", 16)


Images = Callable[[str, int], fn.ImageData]


@pytest.fixture
def images() -> Images:
    """60 more blobs for each split, none of them twice."""
    return lambda split, seed: small_images(60, seed=seed, split=split)


Harden = Callable[..., fn.Run]


@pytest.fixture
def harden(small_classifier: fn.Classifier, images: Images, tmp_path: Path) -> Harden:
    """fn.harden of the small network, in a folder of its own, with few steps and no other fits."""

    def run(**changes: object) -> fn.Run:
        options: dict[str, object] = {
            "val": images("val", 1),
            "test": images("test", 2),
            "train": images("train", 3),
            "epsilon": EPSILON,
            "steps": 12,
            "alternatives": False,
            "batch_size": 32,
            "budget": 0.1,
            "output": tmp_path / "run",
        }
        return fn.harden(small_classifier, **options | changes)  # type: ignore[arg-type]

    return run


def gains_of(run: fn.Run) -> dict[str, list[dict[str, str]]]:
    with (run.folder / "gains.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {layer: [row for row in rows if row["layer"] == layer] for layer in {row["layer"] for row in rows}}


def changes_of(run: fn.Run, classifier: fn.Classifier, pixels: torch.Tensor) -> Changes:
    """The gains of a run as its table has them."""
    layers = {layer.name: layer for layer in executed_layers(classifier, pixels[:8])}
    return {
        layers[name].site("conv"): (
            torch.tensor([float(row["gain"]) for row in rows]),
            torch.tensor([float(row["shift"]) for row in rows]),
        )
        for name, rows in gains_of(run).items()
    }


@pytest.mark.parametrize("rule", ["learned", "proportional"])
def test_a_run_leaves_weights_that_its_own_class_loads(
    harden: Harden, small_classifier: fn.Classifier, images: Images, rule: str
) -> None:
    before = {key: one.clone() for key, one in small_classifier.module.state_dict().items()}
    own = copy.deepcopy(small_classifier.module)
    run = harden(rule=rule)
    assert {path.name for path in run.folder.iterdir()} == FILES
    own.load_state_dict(load_file(run.hardened_weights), strict=True)
    pixels = images("test", 2)[:][0]
    with torch.no_grad():
        mended = own(small_classifier.normalise(pixels))
        with scaling(small_classifier, changes_of(run, small_classifier, pixels)):
            torch.testing.assert_close(mended, small_classifier(pixels), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(mended, small_classifier(pixels), atol=1e-3)
    for key, tensor in small_classifier.module.state_dict().items():
        assert torch.equal(tensor, before[key])  # the caller's network is as it was
    found, card = run.summary["hardening"], json.loads((run.folder / "hardened.json").read_text())
    assert (found["fitted_on"], found["chosen_on"]) == ("train" if rule == "learned" else None, "val")
    assert (card["verdict"], card["rule"]) == (found["verdict"], rule)
    assert card["weights_sha256"] == fn.Classifier(own, mean=[0.4], std=[0.3]).sha256()


def test_the_numbers_of_the_summary_are_those_of_the_judgement(harden: Harden) -> None:
    run = harden(epsilons=["0.02"])
    found, table = run.summary["hardening"], run.judgement.to_pylist()
    values = {
        (row["network"], row["attack"], row["source"], round(row["epsilon"], 9)): row["value"]
        for row in table
    }
    for row in found["accuracies"]:
        place = (row["network"], row["attack"], row["made_on"], float(row["epsilon"]))
        assert row["value"] == values[place]
        assert row["n"] == 60
        assert row["ci95"] == list(wilson(round(60 * row["value"]), 60))
    pgd = next(row for row in found["differences"] if (row["attack"], row["epsilon"]) == ("pgd", EPSILON))
    after, before = (values[name, "pgd", name, float(EPSILON)] for name in ("hardened", "original"))
    assert pgd["value"] == pytest.approx(after - before)
    assert (pgd["gained"] - pgd["lost"]) / 60 == pytest.approx(after - before)
    assert {row["epsilon"] for row in found["differences"] if row["attack"] == "fgsm"} == {"0.02", EPSILON}
    assert run.summary["clean_accuracy"]["value"] == values["original", "clean", "original", 0.0]
    assert sum(row["before"]["n"] for row in found["per_class"].values()) == 60
    written = (run.folder / "summary.md").read_text()
    assert found["verdict"] in written
    assert f"{100 * after:.1f} %" in written


def test_the_proportional_rule_is_dropout_on_val(
    harden: Harden, small_classifier: fn.Classifier, images: Images
) -> None:
    run = harden(rule="proportional", layer="first", site="conv", strength=0.4, tolerance=0.05)
    drops = fn.dropout(small_classifier, images("val", 1), layer="first", batch_size=32)
    expected = proportional(drops.clean.drop, Strength(0.4, 0.4), tolerance=0.05)
    found = gains_of(run)["conv1"]
    np.testing.assert_allclose([float(row["gain"]) for row in found], expected)
    assert "conv2" not in gains_of(run)
    kept = harden(rule="proportional", layer="first", site="conv", keep_energy=True, force=True)
    aim = fn.targeting(small_classifier, images("val", 1), layer="first", epsilons=[], batch_size=32)
    factors = np.array([float(row["gain"]) for row in gains_of(kept)["conv1"]])
    energy = aim.activation_energy
    assert (factors**2 * energy).sum() == pytest.approx(energy.sum(), rel=1e-5)


def test_the_searched_rule_takes_the_best_of_its_finalists(
    harden: Harden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        search, "STRENGTHS", (Strength(0.5, 0.0), Strength(0.0, 0.75), Strength(0.5, 0.5, -1))
    )
    run = harden(rule="searched", site="conv")
    found = run.summary["hardening"]
    (chosen,) = (one for one in found["chosen"] if one["network"] == "hardened")
    original, *reached = chosen["robust"]
    assert found["is_identity"] == (max(reached) <= original)
    assert all(chosen["clean"][0] - chosen["clean"][1 + place] <= 0.1 for place in chosen["attacked"])
    with Ledger(run.folder) as ledger:
        kinds = [(unit.kind, unit.attack) for unit in ledger.units() if unit.kind == "candidates"]
    assert [score for _, score in kinds] == list(search.SCORES)


def test_a_search_that_costs_too_much_leaves_the_network(
    harden: Harden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "finalists", lambda screened, budget: [])
    assert harden(rule="searched", site="conv").summary["hardening"]["is_identity"]


def test_finalists_gain_most_under_fgsm_within_the_budget() -> None:
    one = {"clean": np.array([0.0, -0.02, -0.005]), "fgsm": np.array([0.1, 0.9, 0.3])}
    other = {"clean": np.array([-0.5, 0.01, 0.0]), "fgsm": np.array([0.8, 0.2, -0.1])}
    assert search.finalists([one, other], 0.01) == [(0, 2), (1, 1), (0, 0), (1, 2)]


def test_a_fit_leaves_the_network_as_it_was(small_classifier: fn.Classifier, images: Images) -> None:
    """In train mode, say, as a library's user may hand it over."""
    small_classifier.train()
    before = {key: one.clone() for key, one in small_classifier.module.state_dict().items()}
    sites = [layer.site("conv") for layer in executed_layers(small_classifier, images("train", 3)[:8][0])[:2]]
    learners = [
        make_learner(what, small_classifier, sites, Fraction(1, 20))
        for what in (GAINS, ALL_WEIGHTS, BATCH_NORMS)
    ]
    assert all(pace > 0 for pace in learn.seconds_per_step(learners, images("train", 3), 16))
    for key, tensor in small_classifier.module.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert small_classifier.module.training
    assert all(one.requires_grad for one in small_classifier.module.parameters())


def test_the_best_change_keeps_the_budget_and_helps() -> None:
    def rows(*shares: float) -> np.ndarray:
        return np.stack([np.arange(100) < 100 * share for share in shares])

    clean = rows(0.9, 0.85, 0.89, 0.9)  # losses of 5, 1 and 0 pp, standard errors of 2.18, 0.995 and 0
    assert keeping(clean, 0.0718) == [0, 1, 2]
    assert keeping(clean, 0.0717) == [1, 2]
    assert keeping(clean, 0.02) == [1, 2]
    assert keeping(clean, 0.0199) == [2]
    assert Tried(clean, rows(0.3, 0.5, 0.6), (1, 2)).best() == 2
    assert Tried(clean, rows(0.3, 0.6, 0.6), (1, 2)).best() == 1  # the first of equals
    assert Tried(clean, rows(0.3, 0.3, 0.2), (1, 2)).best() is None  # no better than it was
    assert Tried(clean, rows(0.3), ()).best() is None  # none within the budget
    nothing = np.zeros((0, 0), bool)
    assert Tried(clean, nothing, ()).shrunk(0.01) == 1  # a control: the first, and no margin
    assert Tried(rows(0.9, 0.7, 0.8), nothing, ()).shrunk(0.02) == 1  # the last


def test_where_nothing_helps_the_weights_stay_as_they_were(
    harden: Harden, small_classifier: fn.Classifier
) -> None:
    run = harden(epsilon="0.0001", budget=0.0)
    found = run.summary["hardening"]
    assert found["is_identity"]
    assert found["verdict"] == "changes nothing"
    for key, tensor in load_file(run.hardened_weights).items():
        assert torch.equal(tensor, small_classifier.module.state_dict()[key])
    assert "as they were" in (run.folder / "summary.md").read_text()


def test_the_alternatives_are_fitted_judged_and_counted(
    harden: Harden, small_classifier: fn.Classifier
) -> None:
    run = harden(alternatives=True)
    fits = {fit["network"]: fit for fit in run.summary["hardening"]["fits"]}
    weights = sum(one.numel() for one in small_classifier.module.parameters())
    assert fits["hardened"]["numbers"] == 2 * (4 + 6)
    assert fits["all weights"]["numbers"] == weights
    assert fits["batch norms"]["numbers"] == 2 * 4
    judged = {(row["network"], row["attack"]) for row in run.summary["hardening"]["accuracies"]}
    assert {(name, attack) for name in fits for attack in ("clean", "fgsm", "pgd")} <= judged
    assert fits["hardened"]["steps"] == 12
    for one in run.summary["hardening"]["chosen"]:
        if one["network"] in fits and one["taken"] is not None:
            best = max(one["robust"][1:])
            assert one["robust"][1 + one["attacked"].index(one["taken"])] == best > one["robust"][0]
    assert (run.folder / "summary.md").read_text().count("| taken |") <= len(fits)


def test_without_training_images_val_is_divided(harden: Harden, images: Images) -> None:
    run = harden(train=None)
    found = run.summary["spec"]["found"]
    assert (found["fitted_on"], found["chosen_on"]) == ("one half of val", "the other half of val")
    assert found["train_sha256"] is None
    nothing = harden(train=None, rule="proportional", force=True).summary["spec"]["found"]
    assert (nothing["fitted_on"], nothing["chosen_on"]) == (None, "val")  # nothing is fitted, val stays whole


@pytest.mark.parametrize("kind", ["fit", "chosen", "judged"])
def test_a_killed_run_resumes_to_the_same(harden: Harden, tmp_path: Path, kind: str) -> None:
    whole = harden(output=tmp_path / "whole", steps=14)

    @contextmanager
    def killed(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        def advance(done: int, note: str) -> None:
            # four steps an epoch, which is what a checkpoint keeps: stopped in the third
            if note.startswith("fitting: step 3.2" if kind == "fit" else kind):
                raise KeyboardInterrupt

        yield advance

    with pytest.raises(KeyboardInterrupt):
        harden(output=tmp_path / "killed", steps=14, progress=killed)
    resumed = harden(output=tmp_path / "killed", steps=14)
    for name in ("gains.csv", "hardened.safetensors", "judgement.parquet"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not list(resumed.folder.glob("*.checkpoint"))


def test_images_of_the_report_may_not_be_chosen_or_fitted_on(harden: Harden, images: Images) -> None:
    test = images("test", 2)
    for name in ("val", "train"):
        with pytest.raises(fn.InputError, match=f"{name} and test share images\n.*60 of 60"):
            harden(**{name: replace(test, split=name)})


def test_a_ruined_network_is_refused(small_classifier: fn.Classifier, images: Images, tmp_path: Path) -> None:
    ruined = copy.deepcopy(small_classifier)
    with torch.no_grad():
        ruined.module.fc.weight.zero_()  # type: ignore[union-attr, operator]
    with pytest.raises(fn.InputError, match="hardly better than chance"):
        fn.harden(ruined, val=images("val", 1), test=images("test", 2), epsilon=0.1, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_layer_that_cannot_hold_gains_is_refused(
    small_classifier: fn.Classifier, images: Images, tmp_path: Path
) -> None:
    network = copy.deepcopy(small_classifier)
    nn.utils.parametrizations.weight_norm(network.module.conv2)  # type: ignore[arg-type]
    with pytest.raises(fn.InputError, match="weights of conv2"):
        fn.harden(network, val=images("val", 1), test=images("test", 2), epsilon=0.1, output=tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epsilon": 0}, "epsilon"),
        ({"rule": "magic"}, "rule"),
        ({"strength": 1.0}, "strength"),
        ({"budget": -0.1}, "budget"),
        ({"minutes": 0}, "minutes"),
        ({"steps": 0}, "steps"),
        ({"score": "beauty"}, "score"),
        ({"layer": "nope"}, "no such layer"),
        ({"site": "norm"}, "conv2 has no site norm"),
    ],
)
def test_options_that_do_not_do(
    harden: Harden, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(fn.InputError, match=said):
        harden(**changes)
    assert not (tmp_path / "run").exists()


def test_learned_gains_climb_down_the_adversarial_loss(
    small_classifier: fn.Classifier, images: Images
) -> None:
    """The gradient that a fit follows is that of the loss with the gains in the weights.

    At epsilon 0 the attacked images are the clean ones, so the loss is twice the cross-entropy.
    """
    data = images("train", 3)
    sites = [layer.site("conv") for layer in executed_layers(small_classifier, data[:8][0])[:2]]
    learner = make_learner(GAINS, small_classifier, sites, Fraction(0))
    pixels, labels = data[:16]
    with learner.working():
        small_classifier.zero_grad()
        learner.loss(pixels, labels, torch.Generator().manual_seed(0)).backward()  # type: ignore[no-untyped-call]
    assert isinstance(learner.module, learn.LearnedGains)
    step = 1e-3
    for place, site in enumerate(sites):
        found = learner.module.logarithms[place].grad
        assert found is not None
        for channel in range(len(found)):
            factors = np.ones(len(found))
            losses = []
            for sign in (1, -1):
                factors[channel] = np.exp(sign * step)
                folded = fold(small_classifier, Gains.of_factors([site], [factors]).changes, pixels)
                with torch.no_grad():
                    losses.append(float(nn.functional.cross_entropy(folded(pixels), labels)))
            assert (losses[0] - losses[1]) / step == pytest.approx(float(found[channel]), abs=2e-3)
    assert all(one.grad is None for one in small_classifier.module.parameters())


def test_what_each_learner_fits(small_classifier: fn.Classifier) -> None:
    for what, keys in (
        (ALL_WEIGHTS, [name for name, _ in small_classifier.module.named_parameters()]),
        (BATCH_NORMS, ["norm1.weight", "norm1.bias"]),
    ):
        learner = make_learner(what, small_classifier, [], Fraction(1, 20))
        assert sorted(learner.result()) == sorted(f"weights/{key}" for key in keys)


def test_weights_between_two_networks(small_classifier: fn.Classifier) -> None:
    before = small_classifier.module.state_dict()["fc.weight"].clone()
    target = {"weights/fc.weight": before.numpy() + 1}
    half = with_weights(small_classifier, between(small_classifier, target, 0.5))
    torch.testing.assert_close(half.module.state_dict()["fc.weight"], before + 0.5)
    assert torch.equal(small_classifier.module.state_dict()["fc.weight"], before)
    same = between(small_classifier, target, 0.0)
    np.testing.assert_array_equal(same["weights/fc.weight"], before.numpy())


def test_sites_are_those_of_batch_norms_where_all_layers_have_one(harden: Harden) -> None:
    assert harden(layer="conv1").summary["site"] == "norm"
    assert harden(force=True).summary["site"] == "conv"  # conv2 has no batch norm


def test_splits_that_differ_or_overlap_or_are_nearly_empty_are_refused(
    harden: Harden, images: Images
) -> None:
    train = images("train", 3)
    renamed = replace(train, classes=("one", "three", "two"))
    with pytest.raises(fn.InputError, match="train and test differ in their classes"):
        harden(train=renamed)
    larger = fn.ImageData(np.zeros((60, 1, 9, 8), np.uint8), train.labels, train.classes)
    with pytest.raises(fn.InputError, match="the shape of their images"):
        harden(train=larger)
    with pytest.raises(fn.InputError, match="too few val images"):
        harden(val=images("val", 1).take(np.arange(12)))
    with pytest.raises(fn.InputError, match="val and train share images"):
        harden(train=images("val", 1))
    floats = images("test", 2)
    few = fn.ImageData(
        floats[:20][0].numpy(), floats.labels[:20], floats.classes
    )  # the same pixels as floats
    with pytest.raises(fn.InputError, match=r"val and test share images\n.*20 of 20"):
        harden(val=few)


def test_a_fit_that_diverges_leaves_the_original_and_says_so(
    harden: Harden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(learn.RATES, GAINS, 1e6)
    monkeypatch.setitem(learn.RATES, ALL_WEIGHTS, 1e30)
    run = harden(alternatives=True)
    fits = {fit["network"]: fit for fit in run.summary["hardening"]["fits"]}
    assert fits["hardened"]["diverged"]
    assert fits["all weights"]["diverged"]
    assert run.summary["hardening"]["verdict"] == "changes nothing"
    assert "all weights (diverged)" in (run.folder / "summary.md").read_text()


def test_a_spec_without_training_images_can_be_read_again(harden: Harden) -> None:
    run = harden(train=None)
    assert (
        make_spec(**read_options(run.folder / "spec.toml")[0]).model_dump() == run_spec_of(run).model_dump()
    )


def run_spec_of(run: fn.Run) -> Spec:
    with Ledger(run.folder) as ledger:
        return ledger.spec


def test_only_a_missing_split_divides_val(
    small_data: fn.ImageData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A training image that cannot be read is no reason to go on without any."""
    generator = np.random.default_rng(0)
    for split, count in (("test", 30), ("val", 40), ("train", 30)):
        for row in range(count):
            folder = tmp_path / "photos" / split / "ab"[row % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{row}.png")
    (tmp_path / "photos/train/a/0.png").write_bytes(b"no image")
    options = {"command": "harden", "model": "mnist-cnn", "data": f"folder:{tmp_path}/photos", "limit": 30}
    spec = make_spec(**options, epsilon="0.1", epsilons=())
    with pytest.raises(fn.InputError, match="of 30 images cannot be used"):
        open_spec(spec)


def test_a_spec_of_another_dtype_is_refused_and_not_run_in_float32() -> None:
    options = {"model": "mnist-cnn", "data": "mnist", "limit": 20, "epsilons": [], "epsilon": "0.1"}
    with pytest.raises(fn.InputError, match="bfloat16"):
        open_spec(make_spec(command="harden", dtype="bfloat16", **options))
