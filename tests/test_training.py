import io
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from fragile_neurons import Classifier, ImageData, InputError, load_model
from fragile_neurons.attacks.pgd import ascend
from fragile_neurons.data.catalogue import CATALOGUE, find_dataset
from fragile_neurons.data.dataset import Dataset
from fragile_neurons.models.loading import MODELS, Model
from fragile_neurons.models.weights import read_weights
from fragile_neurons.stats import wilson
from fragile_neurons.training.loop import Progress, Schedule, fit
from fragile_neurons.training.recipes import (
    ADVERSARIAL_STEPS,
    SHIFT,
    adversarial_loss,
    augmented,
    crop_and_mirror,
    make_schedule,
    standard_loss,
)
from fragile_neurons.training.train import train_model

SCHEDULE = Schedule(epochs=3, batch_size=12, seed=5)  # 40 images: 3 steps, 4 images left out of each epoch
PURPOSE = {"model": "tiny"}


def tiny() -> nn.Module:
    """What a resume could get wrong: running statistics and random numbers of a dropout."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
            relu=nn.ReLU(),
            drop=nn.Dropout(0.3),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc=nn.Linear(64, 3),
        )
    )


def fresh() -> Classifier:
    torch.manual_seed(0)
    return Classifier(tiny(), mean=[0.4], std=[0.3], name="tiny")


def start(
    classifier: Classifier,
    data: ImageData,
    checkpoint: Path,
    schedule: Schedule = SCHEDULE,
    purpose: dict[str, str] = PURPOSE,
) -> Iterator[Progress]:
    loss = standard_loss(classifier)
    return fit(classifier.module, loss, data, schedule, checkpoint=checkpoint, purpose=purpose)


# -- the loop


def test_progress_counts_epochs_and_steps_and_averages_the_loss(
    small_data: ImageData, tmp_path: Path
) -> None:
    module = nn.Linear(1, 1)
    values = iter([1.0, 2.0, 6.0, 4.0, 4.0, 1.0, 0.0, 3.0, 0.0])

    def loss(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return module.weight.sum() * 0 + next(values)

    steps = list(fit(module, loss, small_data, SCHEDULE, checkpoint=tmp_path / "c.pt", purpose={}))
    assert [(step.epoch, step.step, step.steps) for step in steps] == [
        (epoch, step, 3) for epoch in (1, 2, 3) for step in (1, 2, 3)
    ]
    assert [step.loss for step in steps] == [1.0, 1.5, 3.0, 4.0, 4.0, 3.0, 0.0, 1.5, 1.0]


def test_steps_end_a_fit_within_an_epoch_and_frozen_parameters_stay(
    small_data: ImageData, tmp_path: Path
) -> None:
    module = nn.Linear(1, 1)
    module.bias.requires_grad_(False)
    before = [one.detach().clone() for one in (module.weight, module.bias)]

    def loss(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        out: torch.Tensor = module(torch.ones(1, 1)).sum()
        return out

    schedule = replace(SCHEDULE, steps=5, weight_decay=0.0)
    steps = list(fit(module, loss, small_data, schedule, checkpoint=tmp_path / "c.pt", purpose={}))
    assert [(step.epoch, step.step) for step in steps] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]
    assert not torch.equal(module.weight, before[0])
    assert torch.equal(module.bias, before[1])
    one = replace(SCHEDULE, steps=1)
    assert len(list(fit(module, loss, small_data, one, checkpoint=tmp_path / "d.pt", purpose={}))) == 1


def test_every_epoch_sees_other_images_in_another_order_each_at_most_once(
    small_data: ImageData, tmp_path: Path
) -> None:
    module = nn.Linear(1, 1).eval()
    of_image = {small_data[row : row + 1][0].numpy().tobytes(): row for row in range(40)}
    seen: list[int] = []

    def loss(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        assert not module.training  # the mode is whose module it is
        rows = [of_image[image.numpy()[None].tobytes()] for image in images]
        assert labels.tolist() == small_data.labels[rows].tolist()
        seen.extend(rows)
        return module.weight.sum()

    list(fit(module, loss, small_data, SCHEDULE, checkpoint=tmp_path / "c.pt", purpose={}))
    epochs = [seen[:36], seen[36:72], seen[72:]]
    assert [len(set(epoch)) for epoch in epochs] == [36, 36, 36]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({frozenset(epoch) for epoch in epochs}) == 3


def test_the_learning_rate_goes_up_to_its_peak_and_down_again(small_data: ImageData, tmp_path: Path) -> None:
    # a gradient that is always 1 moves a weight by the learning rate at every AdamW step, to a few
    # percent: the cycle also moves the momentum, which the correction for the start takes as constant
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    schedule = Schedule(epochs=10, batch_size=4, peak_learning_rate=0.01, weight_decay=0.0)

    def loss(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return module.weight.sum()

    places = [0.0]
    for _ in fit(module, loss, small_data, schedule, checkpoint=tmp_path / "c.pt", purpose={}):
        places.append(module.weight.item())
    rates = -np.diff(places)
    assert len(rates) == 100
    assert rates.max() == pytest.approx(0.01, rel=0.05)
    peak = int(rates.argmax())
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 1e-9).all()
    # Smith's cycle as torch has it by default: from 1/25 of the peak, up for 30 of 100 steps, to nearly 0
    assert 25 <= peak <= 32
    assert rates[0] == pytest.approx(0.01 / 25, rel=1e-3)
    assert rates[-1] < 1e-6


def test_weight_decay_shrinks_weights_without_a_gradient(small_data: ImageData, tmp_path: Path) -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    schedule = Schedule(epochs=10, batch_size=40, peak_learning_rate=0.1, weight_decay=0.5)

    def loss(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return module.weight.sum() * 0

    next(iter(fit(module, loss, small_data, schedule, checkpoint=tmp_path / "c.pt", purpose={})))
    # decoupled: one step at the first rate, 0.1 / 25, takes away rate * decay
    assert module.weight.item() == pytest.approx(1 - 0.1 / 25 * 0.5, abs=1e-6)


def test_a_fit_learns_the_blobs(small_data: ImageData, tmp_path: Path) -> None:
    classifier = fresh()
    steps = list(start(classifier, small_data, tmp_path / "c.pt", replace(SCHEDULE, epochs=15)))
    assert steps[-1].loss < 0.5 * steps[2].loss
    assert classifier.module.training
    images, labels = small_data[:]
    with torch.no_grad():
        right = (classifier.eval()(images).argmax(1) == labels).sum().item()
    assert right >= 38  # chance is 13


def test_a_fit_is_repeatable_and_depends_on_its_seed(small_data: ImageData, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> str:
        classifier = fresh()
        torch.manual_seed(len(name))  # what was drawn before must not matter
        list(start(classifier, small_data, tmp_path / name, replace(SCHEDULE, seed=seed)))
        return classifier.sha256()

    assert weights("a", 5) == weights("another", 5)
    assert weights("b", 6) != weights("c", 7)


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([4], id="in the second epoch"),
        pytest.param([3], id="after an epoch's last step, before its checkpoint"),
        pytest.param([1], id="in the first epoch"),
        pytest.param([7, 2], id="twice"),
        pytest.param([5, 1, 1], id="thrice"),
    ],
)
def test_a_fit_killed_and_resumed_ends_with_the_same_bits(
    small_data: ImageData, tmp_path: Path, kills: list[int]
) -> None:
    whole = fresh()
    uninterrupted = list(start(whole, small_data, tmp_path / "whole.pt"))
    checkpoint = tmp_path / "killed.pt"
    done = 0  # whole epochs
    for steps in kills:
        running = start(fresh(), small_data, checkpoint)
        seen = [next(running) for _ in range(steps)]
        running.close()  # type: ignore[attr-defined]
        assert seen == uninterrupted[3 * done : 3 * done + steps]
        done += (steps - 1) // 3  # the checkpoint is written after the last step was reported
    resumed = fresh()
    torch.manual_seed(99)
    rest = list(start(resumed, small_data, checkpoint))
    assert rest == uninterrupted[3 * done :]
    assert resumed.sha256() == whole.sha256()
    again = fresh()
    assert list(start(again, small_data, checkpoint)) == []
    assert again.sha256() == whole.sha256()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.pt", "whole.pt"]


@pytest.mark.parametrize(
    ("schedule", "purpose", "expected"),
    [
        ({"epochs": 4}, {}, r"another training: epochs differs\n.*given: +3 in .*c\.pt\n.*allowed: +4\n"),
        ({"batch_size": 10}, {}, r"batch_size differs\n.*12 in .*\n.*10\n"),
        ({"peak_learning_rate": 0.1}, {}, r"peak_learning_rate differs\n.*0\.003 in .*\n.*0\.1\n"),
        ({"weight_decay": 0.0}, {}, r"weight_decay differs\n.*0\.0001 in"),
        ({"seed": 6}, {}, r"seed differs\n.*5 in .*\n.*6\n"),
        ({}, {"model": "other"}, r"model differs\n.*tiny in .*\n.*other\n"),
        ({}, {"adversarial": "0.2"}, r"adversarial differs\n.*None in .*\n.*0\.2\n"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    small_data: ImageData, tmp_path: Path, schedule: dict[str, Any], purpose: dict[str, str], expected: str
) -> None:
    checkpoint = tmp_path / "c.pt"
    list(start(fresh(), small_data, checkpoint))
    before, classifier = checkpoint.read_bytes(), fresh()
    untouched = classifier.sha256()
    with pytest.raises(InputError, match=expected + r"(.|\n)*choose another --output, or remove"):
        next(start(classifier, small_data, checkpoint, replace(SCHEDULE, **schedule), {**PURPOSE, **purpose}))
    assert checkpoint.read_bytes() == before
    assert classifier.sha256() == untouched


def test_a_checkpoint_of_other_images_is_refused(small_data: ImageData, tmp_path: Path) -> None:
    list(start(fresh(), small_data, tmp_path / "c.pt"))
    other = small_data.take(np.arange(40)[::-1])
    with pytest.raises(InputError, match=rf"data differs\n.*{small_data.sha256} in .*\n.*{other.sha256}\n"):
        next(start(fresh(), other, tmp_path / "c.pt"))


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class Payload:
    """What a pickle could run when it is opened."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path("owned"),)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: whole[: len(whole) // 2], id="half"),
        pytest.param(lambda whole: whole[:-1], id="a byte short"),
        pytest.param(lambda whole: b"<!DOCTYPE html><html></html>", id="a web page"),
        pytest.param(lambda whole: b"hello world\n", id="text"),
        pytest.param(lambda whole: bytes(500), id="zeros"),
        pytest.param(lambda whole: saved([1, 2]), id="a list"),
        pytest.param(lambda whole: saved(torch.ones(3)), id="a tensor"),
        pytest.param(lambda whole: saved({"module": {}}), id="bare weights"),
        pytest.param(lambda whole: saved({"identity": 3, "epoch": 1}), id="an identity of another kind"),
        pytest.param(lambda whole: saved({"identity": {}, "epoch": 1}), id="without weights"),
        pytest.param(lambda whole: saved(Payload()), id="code"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_kept(
    small_data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "c.pt"
    list(start(fresh(), small_data, checkpoint))
    damaged = damage(checkpoint.read_bytes())
    checkpoint.write_bytes(damaged)
    expected = r"checkpoint cannot be read\n.*c\.pt: (.|\n)*an interrupted training left\n.*remove the file"
    with pytest.raises(InputError, match=expected):
        next(start(fresh(), small_data, checkpoint))
    assert checkpoint.read_bytes() == damaged
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


# -- the losses


def test_the_standard_loss_is_the_cross_entropy(small_data: ImageData) -> None:
    classifier = fresh().eval()
    images, labels = small_data[:]
    probabilities = classifier(images).double().softmax(1)
    by_hand = -probabilities[torch.arange(40), labels].log().mean()
    value = standard_loss(classifier)(images, labels, torch.Generator())
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-5)


def frozen_norm() -> Classifier:
    """In train mode, but for its normalisation: flags that only a careful hand puts back."""
    classifier = fresh()
    classifier.train()
    classifier.module.get_submodule("drop").eval()
    return classifier


def test_the_adversarial_loss_is_the_cross_entropy_on_pgd_images(small_data: ImageData) -> None:
    images, labels = small_data[:16]
    epsilon = Fraction(8, 255)
    classifier, reference = frozen_norm(), frozen_norm()
    seen: list[torch.Tensor] = []

    def see(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if module.training:
            seen.append(inputs[0].detach().clone())

    classifier.register_forward_pre_hook(see)
    value = adversarial_loss(classifier, epsilon)(images, labels, torch.Generator().manual_seed(3))
    value.backward()  # type: ignore[no-untyped-call]

    # made in evaluation mode, judged in train mode, by one pass
    (attacked,) = seen
    reference.eval()
    generator = torch.Generator().manual_seed(3)
    steps = ADVERSARIAL_STEPS
    expected = ascend(reference, images, labels, epsilon, steps=steps, generator=generator)
    assert torch.equal(attacked, expected)
    assert 0 < (attacked - images).abs().max() <= 8 / 255 + 1e-7
    assert 0 <= attacked.min() <= attacked.max() <= 1

    # the weights' gradient is that of this pass alone: the attack left none behind
    reference.train()
    reference.module.get_submodule("drop").eval()
    again = functional.cross_entropy(reference(expected), labels)
    again.backward()  # type: ignore[no-untyped-call]
    assert value.item() == again.item()
    for one, other in zip(classifier.parameters(), reference.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    assert classifier.module.get_buffer("norm.num_batches_tracked").item() == 1


def test_the_adversarial_loss_puts_training_flags_back(small_data: ImageData) -> None:
    classifier = frozen_norm()
    images, labels = small_data[:16]
    flags = [module.training for module in classifier.modules()]
    assert set(flags) == {True, False}
    adversarial_loss(classifier, Fraction(1, 10))(images, labels, torch.Generator())
    assert [module.training for module in classifier.modules()] == flags
    with pytest.raises(RuntimeError):
        adversarial_loss(classifier, Fraction(1, 10))(images[..., :6], labels, torch.Generator())
    assert [module.training for module in classifier.modules()] == flags
    assert all(parameter.requires_grad for parameter in classifier.parameters())


def test_the_adversarial_loss_is_above_the_clean_one(
    small_classifier: Classifier, small_data: ImageData
) -> None:
    images, labels = small_data[:]
    clean = standard_loss(small_classifier)(images, labels, torch.Generator())
    losses = [
        adversarial_loss(small_classifier, Fraction(percent, 100))(
            images, labels, torch.Generator().manual_seed(0)
        ).item()
        for percent in (2, 10)
    ]
    assert clean.item() < losses[0] < losses[1]


# -- train


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, small_data: ImageData) -> dict[str, ImageData]:
    """A data set `toy` of 256 training and 40 test images, and a model `tiny`, in the catalogues."""
    generator = np.random.default_rng(1)
    labels = np.arange(256) % 3
    images = generator.integers(0, 120, (256, 1, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label : 2 * label + 3, 1:7] += 100
    splits = {
        "train": ImageData(images, labels, small_data.classes, name="toy", split="train"),
        "test": replace(small_data, name="toy"),
    }
    dataset = Dataset(
        name="toy",
        title="blobs",
        classes=small_data.classes,
        sizes={"train": 256, "test": 40},
        mean=(0.4,),
        std=(0.3,),
        epsilons=("0.02", "8/255", "0.1"),
        licence="none",
        mirrors=False,
        place="toy",
        checksums={},
        files=lambda part: (),
        read=lambda folder, split: (np.asarray(splits[split].images), splits[split].labels),
        sources=lambda local: [],
        bundled=Path(),
        bundled_splits=("train", "test"),
    )
    monkeypatch.setitem(CATALOGUE, "toy", dataset)
    monkeypatch.setitem(MODELS, "tiny", Model("tiny", tiny, mean=(0.4,), std=(0.3,), data="toy"))
    return splits


def train(output: Path, **options: Any) -> list[Progress]:
    schedule = Schedule(epochs=options.pop("epochs", 3), seed=options.pop("seed", 0))
    return list(
        train_model("tiny", "toy", output=output, schedule=schedule, command="the command", **options)
    )


def test_train_leaves_weights_and_a_card_that_tells_what_they_reach(
    toy: dict[str, ImageData], tmp_path: Path
) -> None:
    output = tmp_path / "new" / "folder"
    steps = train(output, epochs=8)
    assert len(steps) == 8 * 2
    assert sorted(path.name for path in output.iterdir()) == [
        "card.json",
        "checkpoint.pt",
        "weights.safetensors",
    ]
    card = json.loads((output / "card.json").read_text())
    classifier = load_model("tiny", weights=output / "weights.safetensors").eval()

    # a second derivation of the accuracies from the weights
    images, labels = toy["test"][:]
    images.requires_grad_(True)
    logits = classifier(images)
    functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    right = int((logits.argmax(1) == labels).sum())
    assert right >= 36
    assert card["clean_accuracy"] == {"value": right / 40, "n": 40, "ci95": list(wilson(right, 40))}
    fgsm = {}
    for epsilon in ("0.02", "8/255", "0.1"):
        attacked = (images.detach() + float(Fraction(epsilon)) * images.grad.sign()).clamp(0, 1)
        fgsm[epsilon] = int((classifier(attacked).argmax(1) == labels).sum())
    robust = card["robust_accuracy"]
    assert [(one["attack"][:4], one["epsilon"], one["n"]) for one in robust] == [
        ("FGSM", "0.02", 40),
        ("FGSM", "8/255", 40),
        ("FGSM", "0.1", 40),
        ("PGD,", "8/255", 40),
    ]
    for one in robust[:3]:
        assert one["value"] == fgsm[one["epsilon"]] / 40
        assert one["ci95"] == list(wilson(fgsm[one["epsilon"]], 40))
    assert robust[3]["value"] <= robust[1]["value"]

    assert card["model"] == "tiny"
    assert card["parameters"] == 4 * 9 + 4 + 4 + 4 + 64 * 3 + 3
    assert card["weights_sha256"] == classifier.sha256()
    assert card["command"] == "the command"
    assert card["schedule"] == asdict(Schedule(epochs=8))
    assert card["versions"]["torch"] == torch.__version__
    assert card["data"]["name"] == "toy"
    assert card["data"]["test_sha256"] == toy["test"].sample(None, 0).sha256
    assert card["data"]["train_sha256"] == toy["train"].sample(None, 0).sha256


def test_a_training_that_ended_is_left_alone_and_one_that_lost_its_card_is_judged_again(
    toy: dict[str, ImageData], tmp_path: Path
) -> None:
    train(tmp_path / "run")
    before = {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()
    }
    assert train(tmp_path / "run") == []
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()}
    assert after == before
    (tmp_path / "run" / "card.json").unlink()
    assert train(tmp_path / "run") == []
    other = train_model("tiny", "toy", output=tmp_path / "run", schedule=Schedule(epochs=1), command="")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    next(other)  # another training there, killed: the first one's card is not taken for its
    other.close()  # type: ignore[attr-defined]
    assert not (tmp_path / "run" / "card.json").exists()
    (tmp_path / "run" / "checkpoint.pt").unlink(missing_ok=True)
    train(tmp_path / "run")
    assert (tmp_path / "run" / "card.json").read_bytes() == before["card.json"][0]


def test_a_training_on_attacked_images_is_judged_at_its_own_epsilon(
    toy: dict[str, ImageData], tmp_path: Path
) -> None:
    train(tmp_path / "standard")
    train(tmp_path / "robust", adversarial=Fraction("0.05"))
    card = json.loads((tmp_path / "robust" / "card.json").read_text())
    assert [(one["attack"][:4], one["epsilon"]) for one in card["robust_accuracy"]] == [
        ("FGSM", "0.02"),
        ("FGSM", "8/255"),
        ("FGSM", "0.05"),
        ("FGSM", "0.1"),
        ("PGD,", "0.05"),
    ]
    weights = [load_file(tmp_path / name / "weights.safetensors") for name in ("standard", "robust")]
    assert not torch.equal(weights[0]["fc.weight"], weights[1]["fc.weight"])
    with pytest.raises(InputError, match=r"adversarial differs\n.*no in .*standard.*\n.*0\.05\n"):
        train(tmp_path / "standard", adversarial=Fraction("0.05"))
    with pytest.raises(InputError, match=r"adversarial differs\n.*0\.05 in .*robust.*\n.*8/255\n"):
        train(tmp_path / "robust", adversarial=Fraction(8, 255))


@pytest.mark.parametrize("adversarial", [None, Fraction(8, 255)])
def test_a_training_killed_and_resumed_leaves_the_same_files(
    toy: dict[str, ImageData], tmp_path: Path, adversarial: Fraction | None
) -> None:
    train(tmp_path / "whole", adversarial=adversarial)
    running = train_model(
        "tiny",
        "toy",
        output=tmp_path / "killed",
        schedule=Schedule(epochs=3),
        adversarial=adversarial,
        command="the command",
    )
    for _ in range(4):
        next(running)
    running.close()  # type: ignore[attr-defined]
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["checkpoint.pt"]
    steps = train(tmp_path / "killed", adversarial=adversarial)
    assert steps[0].epoch == 2
    for name in ("weights.safetensors", "card.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert train(tmp_path / "killed", adversarial=adversarial) == []
    other = train(tmp_path / "other", adversarial=adversarial, seed=1)
    assert other[-1].loss != steps[-1].loss


def test_two_trainings_are_not_let_into_one_folder(toy: dict[str, ImageData], tmp_path: Path) -> None:
    schedule = Schedule(epochs=3)
    running = train_model("tiny", "toy", output=tmp_path / "run", schedule=schedule, command="the command")
    next(running)
    with pytest.raises(InputError, match="another process is at work"):
        train(tmp_path / "run")
    whole = [*running]
    assert whole[-1].epoch == 3
    assert train(tmp_path / "run") == []


def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    toy: dict[str, ImageData], tmp_path: Path
) -> None:
    for model, data in (("vgg", "toy"), ("tiny", "imagenet")):
        with pytest.raises(InputError, match="there is no such"):
            list(train_model(model, data, output=tmp_path / "out", schedule=Schedule(epochs=1), command=""))
    of_colour = train_model(
        "cifar10-resnet20", "toy", output=tmp_path / "out", schedule=Schedule(1), command=""
    )
    with pytest.raises(InputError, match="channels"):
        list(of_colour)
    assert not (tmp_path / "out").exists()


# --- images that may be shifted and mirrored


def test_each_image_is_shifted_over_black_and_every_second_one_mirrored() -> None:
    """Pixels that number themselves tell where each came from; nothing else may appear."""
    height, width = 5, 7
    image = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, height, width) / 100
    images = image.repeat(400, 1, 1, 1)
    before = images.clone()
    found = crop_and_mirror(images, torch.Generator().manual_seed(0))
    assert torch.equal(images, before)
    padded = functional.pad(image, (SHIFT,) * 4)
    places = {
        (top, left, mirrored): (crop.flip(2) if mirrored else crop)
        for top in range(2 * SHIFT + 1)
        for left in range(2 * SHIFT + 1)
        for crop in [padded[:, top : top + height, left : left + width]]
        for mirrored in (False, True)
    }
    seen = []
    for one in found:
        matches = [place for place, crop in places.items() if torch.equal(crop, one)]
        assert matches
        seen += matches if len(matches) == 1 else []
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(2 * SHIFT + 1))
    mirrored = sum(mirrored for _, _, mirrored in seen)
    assert 0.4 < mirrored / len(seen) < 0.6


def test_the_same_generator_gives_the_same_shifts_and_the_loss_sees_them() -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64)
    once, again, other = (crop_and_mirror(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    given = []

    def loss(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        given.append(images)
        return images.sum()

    value = augmented(loss)(images, labels, torch.Generator().manual_seed(1))
    assert torch.equal(given[0], once)
    assert value == once.sum()


def test_images_that_may_be_mirrored_are_trained_longer_and_by_sgd() -> None:
    cifar, mnist = find_dataset("cifar10"), find_dataset("mnist")
    assert make_schedule(mnist, epochs=None, seed=3) == Schedule(epochs=8, seed=3)
    assert make_schedule(mnist, epochs=2, seed=0).epochs == 2
    long = make_schedule(cifar, epochs=None, seed=3)
    assert (long.epochs, long.optimizer, long.seed) == (30, "SGD", 3)
    assert make_schedule(cifar, epochs=None, learning_rate=0.02, seed=3) == replace(
        long, peak_learning_rate=0.02
    )
    assert make_schedule(cifar, epochs=None, optimizer="AdamW", seed=3) == Schedule(epochs=30, seed=3)
    with pytest.raises(InputError, match="optimizer"):
        make_schedule(cifar, epochs=None, optimizer="LBFGS", seed=3)


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan"), float("inf")])
def test_a_learning_rate_that_is_not_positive_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="the learning rate is not a positive number"):
        make_schedule(find_dataset("mnist"), epochs=None, learning_rate=rate, seed=0)


def test_sgd_takes_nesterovs_step(small_data: ImageData, tmp_path: Path) -> None:
    """The first step of Nesterov momentum from rest: the gradient, and momentum times it once more."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False))
    schedule = Schedule(epochs=10, optimizer="SGD", batch_size=40, peak_learning_rate=0.5, weight_decay=0.01)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    images, labels = small_data[:]
    gradient = torch.autograd.grad(
        functional.cross_entropy(module(images), labels), list(module.parameters())
    )
    loss = standard_loss(Classifier(module))
    momentum = 0.95  # where a one-cycle schedule begins
    next(fit(module, loss, small_data, schedule, checkpoint=tmp_path / "c.pt", purpose={}))
    for old, new, slope in zip(before, module.parameters(), gradient, strict=True):
        step = slope + 0.01 * old
        torch.testing.assert_close(new.detach(), old - 0.5 / 25 * (1 + momentum) * step)


def test_weights_carry_their_normalisation(toy: dict[str, ImageData], tmp_path: Path) -> None:
    train(tmp_path / "out", epochs=1)
    stored = read_weights(tmp_path / "out" / "weights.safetensors")
    assert (stored.mean, stored.std) == ((0.4,), (0.3,))
