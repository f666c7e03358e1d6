"""bfloat16: another numerics, recorded, in both ways to sweep, and never mixed with float32."""

from __future__ import annotations

from collections import OrderedDict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.backends import cudnn

import fragile_neurons as fn
from fragile_neurons.classifier import evaluating
from fragile_neurons.interventions import drop, intervening, record_maps
from fragile_neurons.neurons import executed_layers
from fragile_neurons.sweeps.answers import Answer, Before
from fragile_neurons.sweeps.choice import choose_way
from fragile_neurons.sweeps.pairs import Pairs


def test_the_twin_computes_in_bfloat16_and_leaves_the_first_as_it_was(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    images, _ = small_data[:]
    twin = small_classifier.as_dtype("bfloat16")
    with torch.no_grad():
        full, half = small_classifier(images), twin(images)
        by_hand = small_classifier.module
        with torch.autocast("cpu", torch.bfloat16):
            expected = by_hand(small_classifier.normalise(images))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected.float())
    assert 1e-5 < float((half - full).abs().max()) / float(full.abs().max()) < 0.05
    assert small_classifier.dtype == "float32"
    assert all(parameter.dtype == torch.float32 for parameter in twin.parameters())
    assert twin.sha256() != small_classifier.sha256()
    with pytest.raises(fn.InputError, match="bfloat16"):
        small_classifier.as_dtype("float16")


def test_float32_is_float32_on_a_gpu_too(
    small_classifier: fn.Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    handle = small_classifier.module.register_forward_hook(lambda *_: seen.append(cudnn.allow_tf32))
    before = (cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark, cudnn.deterministic)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    small_classifier(torch.rand(2, 1, 8, 8))
    handle.remove()
    assert seen == [False]
    assert before == (cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark, cudnn.deterministic)
    assert before[0]  # torch rounds unless it is told not to


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_the_exact_sweep_in_bfloat16_is_the_hook_in_bfloat16(
    small_classifier: fn.Classifier, small_data: fn.ImageData, layer: str
) -> None:
    images, _ = small_data[:]
    twin = small_classifier.as_dtype("bfloat16")
    site = next(one for one in executed_layers(twin, images) if one.name == layer).site("conv")
    choice = choose_way(twin, [site], images, "exact")
    pairs = Pairs.of([0, 2], torch.arange(len(images)))
    found = choice.way.walk(images, [site]).logits(site, drop(0.0), pairs).view(2, len(images), -1)
    for row, channel in enumerate((0, 2)):
        with torch.no_grad(), intervening(twin, site, [channel], drop(0.0)):
            expected = twin(images)
        assert float((found[row] - expected).abs().max()) < 0.05 * float(expected.abs().max())
    (maps,) = record_maps(twin, [site], images)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, maps.bfloat16().float(), atol=0, rtol=0)


@pytest.mark.parametrize("sweep", ["exact", "reference", "sampled"])
def test_a_run_in_bfloat16_says_so_and_is_another_run(
    small_classifier: fn.Classifier, small_data: fn.ImageData, tmp_path: Path, sweep: str
) -> None:
    options: dict[str, Any] = {"layer": "all", "epsilons": ["0.1"], "batch_size": 16, "sweep": sweep}
    full = fn.analyze(small_classifier, small_data, output=tmp_path / "full", **options)
    twin = small_classifier.as_dtype("bfloat16")
    half = fn.analyze(twin, small_data, output=tmp_path / "half", **options)
    assert (full.summary["spec"]["dtype"], half.summary["spec"]["dtype"]) == ("float32", "bfloat16")
    assert "in bfloat16." in (half.folder / "summary.md").read_text(encoding="utf-8")
    for name in ("margin_drop", "share", "disturbance"):
        one, other = (np.array(run.neurons[name].to_pylist()) for run in (full, half))
        np.testing.assert_allclose(other, one, atol=0.05 * np.abs(one).max())
        assert (other != one).any()
    with pytest.raises(fn.InputError, match="another run"):
        fn.analyze(twin, small_data, output=tmp_path / "full", **options)


@pytest.mark.parametrize("sweep", ["exact", "sampled"])
def test_in_bfloat16_no_neuron_is_blamed_for_how_a_graph_rounds(sweep: str) -> None:
    """With its mean taken off the logits, noise lies near boundaries, where a rounding decides the class."""
    torch.manual_seed(0)
    first, norm, last = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(32), nn.Linear(32 * 16, 10)
    module = nn.Sequential(
        OrderedDict(
            conv=first, act=nn.ReLU(), deep=nn.Conv2d(4, 32, 3), norm=norm, act2=nn.ReLU(),
            flatten=nn.Flatten(), fc=last,
        )
    )  # fmt: skip
    assert norm.running_mean is not None
    assert first.bias is not None
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    with torch.no_grad():
        first.weight[2], first.bias[2] = 0, 0
    generator = np.random.default_rng(0)
    images = generator.random((2_000, 1, 8, 8), dtype=np.float32)
    twin = fn.Classifier(module).as_dtype("bfloat16")
    with torch.no_grad(), evaluating(twin):
        last.bias.sub_(twin(torch.from_numpy(images)).mean(dim=0))
        labels = twin(torch.from_numpy(images)).argmax(1).numpy()
    data = fn.ImageData(images, labels, tuple("abcdefghij"))
    found = fn.dropout(twin, data, sweep=sweep).clean
    assert found.verdict[2] == "null"
    assert (found.lost[2], found.gained[2], found.drop[2]) == (0, 0, 0)


def test_a_flip_is_told_from_how_the_graph_rounds() -> None:
    """Every way in which the network, its graph and its graph with a neuron dropped are right or not."""
    right = torch.tensor([*product((1, 0), repeat=3)])
    labels = torch.zeros(len(right), dtype=torch.int64)

    def logits(column: int) -> torch.Tensor:
        return torch.stack([2.0 * right[:, column] - 1, torch.zeros(len(right))], dim=1)

    before, kept = Before(logits(0), labels), Before(logits(1), labels)
    found = Answer.of_pairs(logits(2), before, kept, torch.ones(1, len(right), dtype=torch.bool), None)
    assert found.flipped[:, 0].tolist() == [False, True, False, False, False, False, True, False]
    assert found.right[:, 0].tolist() == [True, False, True, True, False, False, True, False]
