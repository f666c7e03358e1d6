from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18

from fragile_neurons import Classifier, ImageData, InputError
from fragile_neurons.analysis.selection import probed_layers, select
from fragile_neurons.neurons import Layer, Neuron, Site, executed_layers, select_layers, select_neurons

IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Wired(nn.Module):
    """A base for small networks: conv (4 channels) and fc (3 logits) are there, forward is not."""

    early: nn.Module
    again: nn.Module
    next: nn.Module
    token: nn.Module
    norm: nn.Module
    pool: nn.Module
    relu: nn.Module
    gelu: nn.Module
    noise: nn.Module

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 64, 3)
        for name, module in modules.items():
            self.add_module(name, module)

    def logits(self, maps: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(maps.flatten(1))
        return logits


def layers_of(module: nn.Module, images: torch.Tensor = IMAGES) -> dict[str, Layer]:
    return {layer.name: layer for layer in executed_layers(Classifier(module), images)}


def sites_of(module: nn.Module, layer: str = "conv") -> dict[str, Site]:
    return {site.name: site for site in layers_of(module)[layer].sites}


# -- executed layers


def test_layers_are_described_in_order_of_execution(small_classifier: Classifier) -> None:
    conv1, conv2, fc = executed_layers(small_classifier, IMAGES)
    assert conv1 == Layer(
        name="conv1",
        kind="Conv2d",
        channels=4,
        map_shape=(8, 8),
        weight_shape=(4, 1, 3, 3),
        calls=1,
        is_output=False,
        sites=(
            Site("conv1", "conv", "conv1", None, 1),
            Site("conv1", "norm", "norm1", 0, 1),
            Site("conv1", "act", "relu1", 0, 1),
        ),
    )
    assert (conv2.name, conv2.map_shape, conv2.is_output) == ("conv2", (4, 4), False)
    assert [site.name for site in conv2.sites] == ["conv", "act"]
    assert (fc.kind, fc.channels, fc.map_shape, fc.weight_shape) == ("Linear", 3, (), (3, 96))
    assert fc.is_output
    assert [site.axis for site in fc.sites] == [1]


def test_layers_come_as_executed_and_not_as_defined() -> None:
    class Backwards(Wired):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(self.early(x))
            return self.logits(x)

    module = Backwards(early=nn.Conv2d(1, 1, 1), never=nn.Conv2d(1, 4, 3))
    assert list(layers_of(module)) == ["early", "conv", "fc"]


def test_looking_at_the_layers_leaves_the_network_as_it_was() -> None:
    class Failing(Wired):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.conv(x)
            raise RuntimeError("a part is missing")

    good, bad = resnet18(num_classes=3).train(), Failing().train()
    before = {key: tensor.clone() for key, tensor in good.state_dict().items()}
    layers_of(good, torch.rand(2, 3, 32, 32))
    with pytest.raises(RuntimeError, match="a part is missing"):
        layers_of(bad)
    for module in (good, bad):
        assert all(submodule.training for submodule in module.modules())
        assert not any(submodule._forward_hooks for submodule in module.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in good.state_dict().items())


def test_a_convolution_called_twice_counts_its_outputs_and_has_its_own_site_only() -> None:
    class Twice(Wired):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.relu(self.norm(self.again(self.conv(x))))
            x = self.relu(self.norm(self.again(x)))
            return self.logits(x)

    module = Twice(again=nn.Conv2d(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4), relu=nn.ReLU())
    layers = layers_of(module)
    assert list(layers) == ["conv", "again", "fc"]
    assert layers["again"].calls == 2
    assert layers["again"].sites == (Site("again", "conv", "again", None, 1, outputs=2),)
    assert layers["conv"].calls == 1


def test_the_layer_that_yields_the_logits_is_the_last_one_with_as_many_channels_as_classes() -> None:
    convolutional = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 3, 3),  # as many channels as classes, but not the last
            head=nn.Conv2d(3, 3, 1),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )
    assert {name: layer.is_output for name, layer in layers_of(convolutional).items()} == {
        "conv": False,
        "head": True,
    }

    class Fixed(Wired):
        """Ends without a layer: logits are sums of features."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logits(self.conv(x)).reshape(-1, 3, 2).sum(-1)

    assert not any(layer.is_output for layer in layers_of(Fixed(fc=nn.Linear(256, 6))).values())


def test_linear_layers_have_sites_on_their_last_axis() -> None:
    mlp = nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(64, 5),
            norm=nn.BatchNorm1d(5),
            drop=nn.Dropout(),
            act=nn.Tanh(),
            fc2=nn.Linear(5, 3),
        )
    )
    layer = layers_of(mlp)["fc1"]
    assert (layer.kind, layer.channels, layer.map_shape) == ("Linear", 5, ())
    assert layer.sites == (
        Site("fc1", "conv", "fc1", None, 1),
        Site("fc1", "norm", "norm", 0, 1),
        Site("fc1", "act", "act", 0, 1),
    )

    class Tokens(Wired):
        """A linear layer over 8 tokens of 8 pixels: channels lie on axis 2."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logits(self.gelu(self.token(x.squeeze(1))))

    module = Tokens(token=nn.Linear(8, 6), gelu=nn.GELU(), fc=nn.Linear(48, 3))
    layer = layers_of(module)["token"]
    assert (layer.channels, layer.map_shape) == (6, (8,))
    assert [(site.name, site.axis) for site in layer.sites] == [("conv", 2), ("act", 2)]


# -- sites


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ("conv norm relu", {"norm": "norm", "act": "relu"}),
        ("conv norm", {"norm": "norm"}),
        ("conv relu", {"act": "relu"}),
        ("conv relu norm", {"act": "relu"}),  # a norm after the activation is no longer this layer's own
        ("conv norm other relu tanh", {"norm": "other", "act": "tanh"}),  # the last of each
        ("conv drop norm identity relu", {"norm": "norm", "act": "relu"}),
        ("conv pool norm relu", {}),
        ("conv norm pool relu", {"norm": "norm"}),
        ("conv mix relu", {}),  # another convolution mixes the channels
        ("conv layernorm relu", {}),
        ("conv softmax relu", {}),
    ],
)
def test_sites_of_a_chain(chain: str, expected: dict[str, str]) -> None:
    modules = {
        "conv": nn.Conv2d(1, 4, 3, padding=1),
        "norm": nn.BatchNorm2d(4),
        "other": nn.InstanceNorm2d(4),
        "relu": nn.ReLU(inplace=True),
        "tanh": nn.Tanh(),
        "drop": nn.Dropout(),
        "identity": nn.Identity(),
        "pool": nn.AvgPool2d(3, 1, 1),
        "mix": nn.Conv2d(4, 4, 1),
        "layernorm": nn.GroupNorm(1, 4),
        "softmax": nn.Softmax(1),
    }
    tail = OrderedDict(end=nn.Flatten(), fc=nn.Linear(256, 3))
    module = nn.Sequential(OrderedDict((name, modules[name]) for name in chain.split()) | tail)
    found = {name: site.module for name, site in sites_of(module).items() if name != "conv"}
    assert found == expected


def test_a_functional_activation_is_no_site() -> None:
    class Functional(Wired):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = functional.relu(self.norm(self.conv(x)))
            return self.logits(self.relu(x))

    assert list(sites_of(Functional(norm=nn.BatchNorm2d(4), relu=nn.ReLU()))) == ["conv", "norm"]


def test_a_convolution_that_two_things_use_has_its_own_site_only() -> None:
    class Residual(Wired):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.logits(self.relu(self.norm(x)) + x)

    class ResidualOfTheNorm(Wired):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.conv(x))
            return self.logits(self.relu(x) + x)

    modules = {"norm": nn.BatchNorm2d(4), "relu": nn.ReLU()}
    assert list(sites_of(Residual(**modules))) == ["conv"]
    assert list(sites_of(ResidualOfTheNorm(**modules))) == ["conv", "norm"]


def test_an_activation_after_a_sum_belongs_to_no_convolution() -> None:
    # BasicBlock: relu(bn1(conv1(x))) has the block's relu in its first call, bn2(conv2(.)) + x none
    layers = layers_of(resnet18(num_classes=3), torch.rand(2, 3, 32, 32))
    assert len(layers) == 21
    sites = {
        name: {site.name: (site.module, site.call) for site in one.sites} for name, one in layers.items()
    }
    for block in (f"layer{stage}.{number}" for stage in (1, 2, 3, 4) for number in (0, 1)):
        assert sites[f"{block}.conv1"] == {
            "conv": (f"{block}.conv1", None),
            "norm": (f"{block}.bn1", 0),
            "act": (f"{block}.relu", 0),
        }
        assert sites[f"{block}.conv2"] == {"conv": (f"{block}.conv2", None), "norm": (f"{block}.bn2", 0)}
    assert sites["layer2.0.downsample.0"] == {
        "conv": ("layer2.0.downsample.0", None),
        "norm": ("layer2.0.downsample.1", 0),
    }
    assert list(sites["fc"]) == ["conv"]


def test_a_reused_activation_is_met_in_the_call_that_follows_the_layer() -> None:
    class Reused(Wired):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.relu(self.pool(x))
            x = self.relu(self.norm(self.conv(x)))
            x = self.relu(self.norm(self.next(x)))
            return self.logits(x)

    module = Reused(
        relu=nn.ReLU(), norm=nn.BatchNorm2d(4), next=nn.Conv2d(4, 4, 1), pool=nn.MaxPool2d(3, 1, 1)
    ).eval()
    seen: list[torch.Tensor] = []
    module.get_submodule("relu").register_forward_hook(lambda _, __, output: seen.append(output))
    module(IMAGES)
    for layer, call in (("conv", 1), ("next", 2)):
        site = sites_of(module, layer)["act"]
        assert (site.module, site.call) == ("relu", call)
    assert sites_of(module, "next")["norm"].call == 1
    # a second derivation of what that call puts out
    with torch.no_grad():
        by_hand = module.norm(module.conv(module.pool(IMAGES).relu())).relu()
    assert torch.equal(seen[1], by_hand)


def test_of_a_forward_that_depends_on_the_data_only_the_layers_themselves_are_known() -> None:
    class Branching(Wired):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            if x.sum() > 0:
                x = -x
            return self.logits(self.relu(x))

    layers = layers_of(Branching(relu=nn.ReLU()))
    assert {name: [site.name for site in one.sites] for name, one in layers.items()} == {
        "conv": ["conv"],
        "fc": ["conv"],
    }


def test_sites_are_those_of_evaluation_mode() -> None:
    class Auxiliary(Wired):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            if self.training:
                x = x + self.noise(x)
            return self.logits(self.relu(x))

    module = Auxiliary(relu=nn.ReLU(), noise=nn.Dropout())
    assert list(sites_of(module.train())) == ["conv", "act"]
    assert module.training


def test_a_site_that_does_not_exist_is_refused_with_those_that_do() -> None:
    layer = Layer(
        "conv", "Conv2d", 4, (8, 8), (4, 1, 3, 3), 1, False, (Site("conv", "conv", "conv", None, 1),)
    )
    assert layer.site("conv") is layer.sites[0]
    with pytest.raises(InputError, match=r"layer conv has no site act\n.*act\n.*allowed: +conv\n.*--site"):
        layer.site("act")


# -- choosing layers


@pytest.fixture
def deep() -> Classifier:
    """Convolutions stem, block.a, block.b; linear hidden, logits; never.executed."""
    block = nn.Sequential(OrderedDict(a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 2, 1)))
    module = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(1, 4, 3, padding=1),
            block=block,
            flatten=nn.Flatten(),
            hidden=nn.Linear(128, 5),
            logits=nn.Linear(5, 3),
        )
    )
    flatten = module.get_submodule("flatten")
    flatten.add_module("never", nn.Conv2d(1, 2, 1))  # a flatten does not call its children
    return Classifier(module)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("first", ["stem"]),
        ("all", ["stem", "block.a", "block.b"]),
        ("block.*", ["block.a", "block.b"]),
        ("*", ["stem", "block.a", "block.b", "hidden"]),
        ("hidden", ["hidden"]),
        ("block.[b]", ["block.b"]),
    ],
)
def test_layers_are_chosen_by_word_or_pattern(deep: Classifier, pattern: str, expected: list[str]) -> None:
    chosen = select_layers(deep, executed_layers(deep, IMAGES), pattern)
    assert [layer.name for layer in chosen] == expected


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("conv7", "there is no such layer"),
        ("Stem", "there is no such layer"),
        ("logits", "yields the logits, so it is never a target"),
        ("flatten.never", "no Conv2d or Linear module of this name is executed"),
        ("flatten", "no Conv2d or Linear module of this name is executed"),
        ("", "there is no such layer"),
    ],
)
def test_a_layer_that_cannot_be_chosen_is_refused_with_those_that_can(
    deep: Classifier, pattern: str, problem: str
) -> None:
    expected = (
        rf"{problem}.*\n.*given: +{pattern}\n.*first, all, or: stem, block\.a, block\.b, hidden\n.*'layer1"
    )
    with pytest.raises(InputError, match=expected):
        select_layers(deep, executed_layers(deep, IMAGES), pattern)


def test_without_convolutions_the_linear_layers_are_meant() -> None:
    mlp = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 3))
    )
    layers = executed_layers(mlp, IMAGES)
    assert [layer.name for layer in select_layers(mlp, layers, "first")] == ["1"]
    assert [layer.name for layer in select_layers(mlp, layers, "all")] == ["1", "3"]


@pytest.mark.parametrize("pattern", ["first", "all"])
def test_a_network_of_its_logits_alone_has_nothing_to_choose(pattern: str) -> None:
    single = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(
        InputError, match=rf"besides the one that yields the logits\n.*{pattern}\n.*\(no layer at all\)"
    ):
        select_layers(single, executed_layers(single, IMAGES), pattern)


def test_a_layer_of_one_channel_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    classifier = Classifier(module)
    layers = executed_layers(classifier, IMAGES)
    with pytest.raises(
        InputError,
        match=r"layer 0 has a single channel\n.*0: Conv2d with 1 channel\n.*at least 2.*\n.*another",
    ):
        select_layers(classifier, layers, "first")
    assert [layer.name for layer in select_layers(classifier, layers, "1")] == ["1"]


# -- choosing neurons


def layer_of(name: str, channels: int) -> Layer:
    return Layer(name, "Conv2d", channels, (8, 8), (channels, 1, 3, 3), 1, False, ())


TWO = (layer_of("stem", 16), layer_of("block.a", 4))


def names(neurons: tuple[Neuron, ...]) -> list[str]:
    return [str(neuron) for neuron in neurons]


def test_all_neurons_come_layer_by_layer() -> None:
    assert names(select_neurons(TWO, "all", 0)) == [f"stem:{channel}" for channel in range(16)] + [
        f"block.a:{channel}" for channel in range(4)
    ]


def test_a_number_draws_that_many_of_each_layer_by_the_seed() -> None:
    draws = [select_neurons(TWO, "3", seed) for seed in range(200)]
    for draw in draws:
        assert [neuron.layer for neuron in draw] == ["stem"] * 3 + ["block.a"] * 3
        channels = [neuron.channel for neuron in draw]
        assert channels[:3] == sorted(set(channels[:3]))
        assert channels[3:] == sorted(set(channels[3:]))
    assert select_neurons(TWO, "3", 7) == draws[7]
    # uniform: each of 16 channels in 200 * 3 / 16 = 37.5 draws, standard deviation 5.5
    counts = np.bincount([neuron.channel for draw in draws for neuron in draw[:3]], minlength=16)
    assert (abs(counts - 37.5) < 25).all()


def test_a_draw_of_one_layer_does_not_depend_on_the_other_layers_chosen() -> None:
    assert select_neurons(TWO[1:], "2", 5) == select_neurons(TWO, "2", 5)[2:]
    alike = (layer_of("one", 16), layer_of("other", 16))
    draws = [[neuron.channel for neuron in select_neurons(alike, "8", seed)] for seed in range(5)]
    assert all(draw[:8] != draw[8:] for draw in draws)  # nor is it the same one over again


def test_a_number_above_the_channels_takes_them_all() -> None:
    assert len(select_neurons(TWO, "5", 0)) == 5 + 4
    assert select_neurons(TWO, "16", 0) == select_neurons(TWO, "all", 0)


def test_named_neurons_come_once_each_in_order_of_the_network() -> None:
    text = "block.a:3, stem:10,stem:2,block.a:0 ,stem:10"
    assert names(select_neurons(TWO, text, 0)) == ["stem:2", "stem:10", "block.a:0", "block.a:3"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("stem:16", "stem:16"),
        ("stem:-1", "stem:-1"),
        ("stem:1.5", r"stem:1\.5"),
        ("stem:x", "stem:x"),
        ("stem:", "stem:"),
        ("stem", "stem"),
        ("conv9:0", "conv9:0"),
        (":3", ":3"),
        ("0", "0"),
        ("-3", "-3"),
        ("2.5", r"2\.5"),
        ("stem:1;stem:2", "stem:1;stem:2"),
        ("stem:1,stem:99", "stem:99"),
        ("stem:1,", ""),
        ("", ""),
        ("ALL", "ALL"),
    ],
)
def test_neurons_that_there_are_not_are_refused_with_the_range_there_is(text: str, shown: str) -> None:
    expected = (
        rf"no such neuron\n +given: +{shown}\n.*stem:0 to stem:15, block\.a:0 to block\.a:3\n.*write all,"
    )
    with pytest.raises(InputError, match=expected):
        select_neurons(TWO, text, 0)


# -- a selection


def test_a_selection_is_probed_and_chosen_in_one(small_classifier: Classifier, small_data: ImageData) -> None:
    selection = select(
        small_classifier, small_data, layer="*", neurons=["conv2:5", "conv1:1", "conv2:0"], site="act"
    )
    assert names(selection.neurons) == ["conv1:1", "conv2:0", "conv2:5"]
    assert [layer.name for layer in selection.layers] == ["conv1", "conv2"]
    assert selection.channels(selection.layers[1]) == [0, 5]
    assert selection.site == "act"
    assert {check.status for check in selection.checks} == {"pass"}
    layers, checks = probed_layers(small_classifier, small_data)
    assert [layer.name for layer in layers] == ["conv1", "conv2", "fc"]
    assert checks == selection.checks


def test_layers_without_a_chosen_neuron_are_left_out(
    small_classifier: Classifier, small_data: ImageData
) -> None:
    selection = select(small_classifier, small_data, layer="all", neurons="conv2:1")
    assert [layer.name for layer in selection.layers] == ["conv2"]
    whole = select(small_classifier, small_data)
    assert names(whole.neurons) == ["conv1:0", "conv1:1", "conv1:2", "conv1:3"]
    assert whole.site == "conv"


def test_a_selection_refuses_what_its_parts_refuse(
    small_classifier: Classifier, small_data: ImageData
) -> None:
    for layer, site, neurons, expected in (
        ("fc", "conv", "all", "never a target"),
        ("conv2", "norm", "all", r"layer conv2 has no site norm\n.*\n.*conv, act"),
        ("first", "conv", "conv2:1", r"no such neuron\n.*conv2:1\n.*conv1:0 to conv1:3\n"),
    ):
        with pytest.raises(InputError, match=expected):
            select(small_classifier, small_data, layer=layer, site=site, neurons=neurons)
    small_classifier.module.get_parameter("conv1.weight").data[0] = torch.nan
    with pytest.raises(InputError, match=r"weights conv1\.weight are not finite"):
        select(small_classifier, small_data)


def test_a_convolution_of_a_class_of_its_own_is_a_convolution() -> None:
    """As timm's Conv2dSame, or what torch.nn.utils.parametrizations make."""

    class Same(nn.Conv2d):
        pass

    module = nn.Sequential(Same(1, 3, 3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    nn.utils.parametrizations.weight_norm(module[1])
    classifier = Classifier(module).eval()
    layers = executed_layers(classifier, torch.rand(2, 1, 8, 8))
    assert [layer.kind for layer in layers] == ["Conv2d", "Conv2d", "Linear"]
    assert [layer.name for layer in select_layers(classifier, layers, "all")] == ["0", "1"]
