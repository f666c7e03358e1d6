from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torchvision import models

from fragile_neurons import ImageData, InputError, load_model
from fragile_neurons.models.architectures import ResidualBlock, resnet20
from fragile_neurons.models.loading import build
from fragile_neurons.models.published import is_published, published_names


def images_for(channels: int = 3, classes: int = 10, size: int = 32, width: int | None = None) -> ImageData:
    return ImageData(
        np.zeros((1, channels, size, width or size), np.uint8),
        np.zeros(1, np.int64),
        tuple(f"class {number}" for number in range(classes)),
    )


def first_convolution(module: nn.Module) -> nn.Conv2d:
    return next(one for one in module.modules() if isinstance(one, nn.Conv2d))


def run(module: nn.Module, data: ImageData) -> tuple[int, ...]:
    with torch.no_grad():
        images = data[:][0].repeat(2, 1, 1, 1).to(next(module.parameters()).device)
        return tuple(module.eval()(images).shape)


# -- torchvision's

CHEAP = ["resnet18", "squeezenet1_1", "shufflenet_v2_x1_0", "mobilenet_v3_small", "densenet121"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CHEAP)
def test_a_network_is_built_for_the_data(name: str, channels: int) -> None:
    data = images_for(channels, classes=7)
    module = build(name, data)
    assert first_convolution(module).in_channels == channels
    assert run(module, data) == (2, 7)


@pytest.mark.parametrize("name", ["resnet50", "vgg11_bn", "vit_b_16", "convnext_tiny", "efficientnet_b0"])
def test_a_large_network_is_built_for_the_data(name: str) -> None:
    data = images_for(1, classes=4)
    with torch.device("meta"):  # shapes without the cost of values
        module = build(name, data)
    assert first_convolution(module).in_channels == 1
    assert run(module, data) == (2, 4)


def test_without_data_a_network_is_as_its_authors_have_it() -> None:
    with torch.device("meta"):
        for name in ("resnet18", "vit_b_16"):
            assert shapes(build(name, None)) == shapes(models.get_model(name, weights=None))


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(one.shape) for key, one in module.state_dict().items()}


def test_a_transformer_is_cut_for_the_size_of_the_images() -> None:
    with torch.device("meta"):
        for size, tokens in ((32, 2 * 2 + 1), (64, 4 * 4 + 1)):
            positions = build("vit_b_16", images_for(size=size)).get_parameter("encoder.pos_embedding")
            assert positions.shape == (1, tokens, 768)


def test_auxiliary_outputs_are_left_out() -> None:
    with torch.device("meta"):
        module = build("inception_v3", images_for(classes=6, size=96))
    assert not [name for name, _ in module.named_modules() if "Aux" in name]
    assert shapes(module)["fc.weight"] == (6, 2048)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", CHEAP[:-1])
def test_other_channels_change_nothing_of_the_first_convolution_but_its_input(
    name: str, channels: int
) -> None:
    with torch.device("meta"):
        ours, theirs = build(name, images_for(channels)), models.get_model(name, num_classes=10)
    one, other = first_convolution(ours), first_convolution(theirs)
    kept = ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    assert {key: getattr(one, key) for key in kept} == {key: getattr(other, key) for key in kept}
    assert (one.bias is None) == (other.bias is None)
    changed = {key for key, shape in shapes(ours).items() if shapes(theirs)[key] != shape}
    assert set(shapes(ours)) == set(shapes(theirs))
    assert len(changed) == 1
    (weight,) = changed
    assert shapes(ours)[weight] == (one.out_channels, channels, *one.kernel_size)


@pytest.mark.parametrize("option", ["padding_mode", "dilation"])
def test_unusual_options_of_the_first_convolution_are_kept(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"padding_mode": "reflect", "dilation": (2, 2)}[option]
    old = nn.Conv2d(3, 8, 3, padding=2, **{option: value})  # type: ignore[arg-type]
    monkeypatch.setattr(models, "get_model", lambda *_, **__: nn.Sequential(old, nn.Flatten()))
    (new, _) = build("resnet18", images_for(1)).children()
    assert isinstance(new, nn.Conv2d)
    assert (new.in_channels, getattr(new, option)) == (1, value)


# -- the stem for small images

# the first convolution's name, and the pooling that goes
STEMS = {
    "resnet18": ("conv1", ["maxpool"]),
    "densenet121": ("features.conv0", ["features.pool0"]),
    "shufflenet_v2_x1_0": ("conv1.0", ["maxpool"]),
    "squeezenet1_1": ("features.0", ["features.2"]),
    "mobilenet_v3_small": ("features.0.0", []),
    "vgg11_bn": ("features.0", ["features.3"]),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", STEMS)
def test_a_small_stem_changes_the_first_convolution_and_the_first_pooling_only(
    name: str, channels: int
) -> None:
    data = images_for(channels)
    with torch.device("meta"):
        plain, small = build(name, data), build(f"{name}:small", data)
    first, pools = STEMS[name]
    changed = {
        place: (one, other)
        for (place, one), (same, other) in zip(plain.named_modules(), small.named_modules(), strict=True)
        if place == same and not list(one.children()) and repr(one) != repr(other)
    }
    assert sorted(changed) == sorted([*pools, *([first] if first in changed else [])])
    assert all(isinstance(changed[place][1], nn.Identity) for place in pools)
    stem = small.get_submodule(first)
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert (stem.in_channels, stem.out_channels) == (channels, first_convolution(plain).out_channels)
    assert (stem.bias is None) == (first_convolution(plain).bias is None)
    ours, theirs = shapes(small), shapes(plain)
    assert list(ours) == list(theirs)
    assert {key for key in ours if ours[key] != theirs[key]} <= {f"{first}.weight"}
    assert run(small, data) == (2, 10)


def test_the_maps_of_a_small_stem_are_as_large_as_the_images() -> None:
    seen: dict[str, tuple[int, ...]] = {}
    for name in ("resnet18", "resnet18:small"):
        with torch.device("meta"):
            module = build(name, images_for())
        module.get_submodule("layer1").register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: tuple(output.shape[2:])})
        )
        run(module, images_for())
    assert seen == {"resnet18": (8, 8), "resnet18:small": (32, 32)}


@pytest.mark.parametrize("name", ["vit_b_16", "convnext_tiny", "swin_t"])
def test_an_architecture_of_patches_has_no_small_stem(name: str) -> None:
    with (
        torch.device("meta"),
        pytest.raises(InputError, match=rf"no small stem\n.*{name}:small: .*patches\n.*\n.*leave :small out"),
    ):
        build(f"{name}:small", images_for())


# -- names


def test_names_are_those_of_torchvisions_classifiers() -> None:
    names = published_names()
    assert {"resnet18", "vit_b_16", "squeezenet1_1"} <= set(names)
    # detection, segmentation, video and quantised networks are no image classifiers
    assert not {"fasterrcnn_resnet50_fpn", "fcn_resnet50", "r3d_18", "quantized_resnet18"} & set(names)
    assert is_published("resnet18")
    assert is_published("resnet18:small")
    assert is_published("timm:whatever")
    assert not is_published("resnet19")
    assert not is_published("resnet18:large")


@pytest.mark.parametrize("name", ["resnet19", "ResNet18", "", "fcn_resnet50"])
def test_an_unknown_name_is_refused(name: str) -> None:
    for refuse in (load_model, lambda name: build(name, None)):
        with pytest.raises(
            InputError, match=r"no such model\n.*\n.*resnet18:small, timm:NAME.*\n.*neurons models"
        ):
            refuse(name)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("resnet18", r"a file of weights, or the word torchvision"),
        ("resnet18:small", r"a file of weights"),
        ("timm:resnet18", r"a file of weights"),
        ("resnet20", r"a file of weights"),
    ],
)
def test_random_weights_are_never_taken_by_accident(name: str, allowed: str) -> None:
    with pytest.raises(
        InputError,
        match=rf"^{name} comes without weights\n.*no --weights\n +allowed: +{allowed}\n.*random weights",
    ):
        load_model(name, data=images_for())


def test_a_file_of_weights_is_loaded_into_a_published_network(tmp_path: Path) -> None:
    torch.manual_seed(1)
    data = images_for(1, classes=5)
    trained = build("squeezenet1_1:small", data)
    save_file(
        trained.state_dict(),
        tmp_path / "w.safetensors",
        metadata={"normalisation": '{"mean": [0.25], "std": [0.5]}'},
    )
    classifier = load_model("squeezenet1_1:small", data=data, weights=tmp_path / "w.safetensors")
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected = trained.eval()((images - 0.25) / 0.5)
        torch.testing.assert_close(classifier(images), expected, rtol=1e-4, atol=1e-5)
    assert classifier.module.get_parameter("features.0.weight").shape == (64, 1, 3, 3)
    with pytest.raises(
        InputError, match=r"do not fit.*\n.*classifier\.1\.weight: \(5, .*\n.*: \(9, .*\n.*number of classes"
    ):
        load_model("squeezenet1_1:small", data=images_for(1, 9), weights=tmp_path / "w.safetensors")


def test_images_too_small_for_an_architecture_are_refused_with_what_it_says() -> None:
    with (
        torch.device("meta"),
        pytest.raises(
            InputError, match=r"vit_b_16 cannot be built for this data\n.*\w+.*\n.*\n.*another arch"
        ),
    ):
        build("vit_b_16", images_for(size=30))


# -- the weights that torchvision publishes


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """What torchvision would fetch for squeezenet1_1, without fetching it."""
    torch.manual_seed(2)
    state = {key: one + 1e-3 for key, one in models.squeezenet1_1().state_dict().items()}

    def get_state_dict(self: models.WeightsEnum, *_: Any, **options: Any) -> dict[str, torch.Tensor]:
        assert self is models.SqueezeNet1_1_Weights.DEFAULT
        assert options["check_hash"]
        return state

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", get_state_dict)
    return state


def test_published_weights_come_with_their_normalisation(published: dict[str, torch.Tensor]) -> None:
    classifier = load_model("squeezenet1_1", weights="torchvision")
    loaded = classifier.module.state_dict()
    assert all(torch.equal(loaded[key], one) for key, one in published.items())
    assert classifier.mean is not None
    assert classifier.std is not None
    # ImageNet's, as everybody uses them
    assert classifier.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert classifier.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    other = load_model("squeezenet1_1", weights="torchvision", mean=[0.5] * 3, std=[0.25] * 3)
    assert other.mean is not None
    assert other.mean.flatten().tolist() == [0.5] * 3


def test_published_weights_of_a_thousand_classes_do_not_fit_ten(published: dict[str, torch.Tensor]) -> None:
    with pytest.raises(
        InputError,
        match=r"do not fit the network\n.*https://.* with classifier\.1\.weight: "
        r"\(1000, 512, 1, 1\); 1 more.*\n.*: \(10, 512, 1, 1\)\n.*number of classes",
    ):
        load_model("squeezenet1_1", data=images_for(), weights="torchvision")


def test_images_of_another_size_than_the_published_weights_saw_are_told(
    published: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    load_model("squeezenet1_1", data=images_for(classes=1000, size=224), weights="torchvision")
    assert caplog.messages == []
    load_model("squeezenet1_1", data=images_for(classes=1000, size=64), weights="torchvision")
    assert caplog.messages == ["torchvision trained squeezenet1_1 on images of 224 x 224, these are 64 x 64"]


@pytest.mark.parametrize("error", [OSError("<urlopen error\n no route>"), RuntimeError("invalid hash value")])
def test_a_download_that_fails_is_one_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_state_dict(*_: Any, **__: Any) -> dict[str, torch.Tensor]:
        raise error

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", get_state_dict)
    said = " ".join(str(error).split())
    with pytest.raises(
        InputError,
        match=rf"weights for squeezenet1_1 cannot be fetched\n +given: +{said}\n"
        r" +allowed: +a reachable squeezenet1_1-\w+\.pth\n.*--weights FILE",
    ):
        load_model("squeezenet1_1", weights="torchvision")


@pytest.mark.parametrize("name", ["squeezenet1_1:small", "mnist-cnn", "resnet20"])
def test_there_is_nothing_to_fetch_for_other_names(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"torchvision has no weights for {name}\n.*--weights torchvision\n"
    ):
        load_model(name, weights="torchvision")


def test_a_file_called_torchvision_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torchvision").write_text("<html>")
    with pytest.raises(InputError, match=r"the weights cannot be read\n.*torchvision: this is a web page"):
        load_model("squeezenet1_1", weights="torchvision")


# -- timm's


def test_where_timm_is_not_installed_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError,
        match=r"timm is not installed\n.*timm:resnet18\n.*\n.*pip install 'fragile-neurons\[timm\]'",
    ):
        build("timm:resnet18", images_for())


@dataclass
class Timm:
    """The few functions of timm that are used, and the options they were called with."""

    module: ModuleType
    calls: list[dict[str, Any]]


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Timm:
    known, fake = {"resnet10t": False, "vit_tiny": True, "broken": False}, Timm(ModuleType("timm"), [])

    def create_model(name: str, **options: Any) -> nn.Module:
        if name == "broken":
            raise RuntimeError("no such\n size")
        fake.calls.append({"name": name, **options})
        stem = nn.Conv2d(options["in_chans"], 8, 7, stride=2, padding=3, bias=False)
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, options["num_classes"]))
        return nn.Sequential(stem, nn.MaxPool2d(2), head)

    functions = SimpleNamespace(
        is_model=lambda name: name.split(".")[0] in known,
        list_models=lambda pattern: [name for name in known if pattern.strip("*") in name],
        get_pretrained_cfg_value=lambda name, key: known[name] if key == "fixed_input_size" else None,
        create_model=create_model,
    )
    for name, function in vars(functions).items():
        setattr(fake.module, name, function)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: object() if name == "timm" else found(name, *more)
    )
    monkeypatch.setitem(sys.modules, "timm", fake.module)
    return fake


def test_timms_networks_are_built_for_the_data_without_fetching(timm: Timm) -> None:
    assert run(build("timm:resnet10t", images_for(1, 7)), images_for(1, 7)) == (2, 7)
    build("timm:vit_tiny", images_for(3, 5, size=48, width=64))
    build("timm:vit_tiny", None)
    common = {"pretrained": False}
    assert timm.calls == [
        {"name": "resnet10t", "num_classes": 7, "in_chans": 1, **common},
        {"name": "vit_tiny", "num_classes": 5, "in_chans": 3, "img_size": 48, **common},
        {"name": "vit_tiny", "num_classes": 1000, "in_chans": 3, **common},
    ]


def test_timms_networks_take_weights_and_a_small_stem(timm: Timm, tmp_path: Path) -> None:
    data = images_for(1, 4)
    module = build("timm:resnet10t:small", data)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    classifier = load_model("timm:resnet10t:small", data=data, weights=tmp_path / "w.safetensors")
    assert classifier.name == "timm:resnet10t:small"
    assert first_convolution(classifier).kernel_size == (3, 3)
    assert shapes(classifier.module) == shapes(module)


def test_an_unknown_name_of_timm_is_refused_with_close_ones(timm: Timm) -> None:
    for name, close in (("resnet99", "resnet10t"), ("zzz", r"the names of timm\.list_models\(\)")):
        with pytest.raises(
            InputError, match=rf"timm has no such model\n +given: +{name}\n +allowed: +{close}\n"
        ):
            build(f"timm:{name}", images_for())


def test_what_timm_cannot_build_is_one_error(timm: Timm) -> None:
    with pytest.raises(
        InputError, match=r"timm:broken cannot be built for this data\n +given: +no such size\n"
    ):
        build("timm:broken", images_for())


# -- resnet20


def test_resnet20_has_the_channels_and_weights_of_the_paper() -> None:
    module = resnet20()
    convolutions = [one for one in module.modules() if isinstance(one, nn.Conv2d)]
    # 1 + 3 stages x 3 blocks x 2; (7 x 16 + 6 x 32 + 6 x 64) channels
    assert len(convolutions) == 19
    assert sum(one.out_channels for one in convolutions) == 7 * 16 + 6 * 32 + 6 * 64 == 688
    # conv: 9 (3*16 + 6*16*16 + 16*32 + 5*32*32 + 32*64 + 5*64*64); norm: 2 per channel; fc: 64*10 + 10
    by_hand = 9 * (48 + 6 * 256 + 512 + 5 * 1024 + 2048 + 5 * 4096) + 2 * 688 + 650
    assert sum(one.numel() for one in module.parameters()) == by_hand == 269_722
    assert all({name for name, _ in one.named_parameters()} == BLOCK for one in blocks(module))
    assert len(blocks(module)) == 9


BLOCK = {"conv1.weight", "conv2.weight", *(f"bn{n}.{key}" for n in (1, 2) for key in ("weight", "bias"))}


def blocks(module: nn.Module) -> list[ResidualBlock]:
    return [one for one in module.modules() if isinstance(one, ResidualBlock)]


@pytest.mark.parametrize(("channels", "classes"), [(1, 4), (3, 100)])
def test_resnet20_is_built_for_the_data(channels: int, classes: int) -> None:
    data = images_for(channels, classes)
    module = build("resnet20", data)
    assert first_convolution(module).in_channels == channels
    assert run(module, data) == (2, classes)
    assert shapes(build("resnet20", None)) == shapes(resnet20(10, 3))


def test_resnet20_halves_its_maps_twice() -> None:
    module, seen = resnet20().eval(), []
    for name in ("relu", "layer1", "layer2", "layer3"):
        module.get_submodule(name).register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    module(torch.zeros(1, 3, 32, 32))
    assert seen == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]


def dense_norm(maps: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return maps * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]


def dense_convolution(maps: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """Each output pixel as a sum over the patch around it, patches taken by hand."""
    padded = functional.pad(maps, (1, 1, 1, 1))
    rows, columns = range(0, maps.shape[2], stride), range(0, maps.shape[3], stride)
    patches = [[padded[:, :, row : row + 3, column : column + 3] for column in columns] for row in rows]
    stacked = torch.stack([torch.stack(line, -1) for line in patches], -2)
    return torch.einsum("ncijhw,ocij->nohw", stacked, weight)


@pytest.mark.parametrize(("before", "after", "stride"), [(4, 4, 1), (4, 8, 2), (4, 7, 2)])
def test_a_block_is_two_convolutions_beside_the_padded_image(before: int, after: int, stride: int) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(before, after, stride).double().eval()
    for key, one in block.state_dict().items():
        if "bn" in key and one.is_floating_point():
            one.copy_(torch.rand_like(one) + 0.5)
    images = torch.randn(2, before, 6, 6, dtype=torch.float64)
    inner = dense_norm(dense_convolution(images, block.conv1.weight, stride), block.bn1).clamp(min=0)
    outer = dense_norm(dense_convolution(inner, block.conv2.weight, 1), block.bn2)
    shortcut = torch.zeros_like(outer)
    start = (after - before) // 2
    for channel in range(before):
        shortcut[:, start + channel] = images[:, channel, ::stride, ::stride]
    with torch.no_grad():
        torch.testing.assert_close(block(images), (outer + shortcut).clamp(min=0), rtol=1e-9, atol=1e-9)
