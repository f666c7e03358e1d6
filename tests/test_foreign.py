"""Networks from elsewhere: as good as the plain network, or refused in one line."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, weight_norm

import fragile_neurons as fn
from fragile_neurons import Classifier, ImageData, InputError
from fragile_neurons.attacks.fgsm import gradient_sign
from fragile_neurons.classifier import evaluating
from fragile_neurons.interventions import drop, intervening
from fragile_neurons.neurons import executed_layers
from fragile_neurons.probe import probe

EPSILONS = ["0", "0.1"]


def table(module: nn.Module, data: ImageData, layer: str = "all", **options: Any) -> pa.Table:
    classifier = Classifier(module, mean=[0.4], std=[0.3])
    options = {"sweep": "reference", **options}  # to the last bit, which the order of sums decides
    return fn.dropout(classifier, data, layer=layer, epsilons=EPSILONS, **options).to_table()


def snapshot(module: nn.Module) -> tuple[dict[str, torch.Tensor], list[object]]:
    """The state dict, and of every part the training flag, the hooks and what wants a gradient."""
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}, [
        (
            part.training,
            list(part._forward_hooks.values()),
            list(part._forward_pre_hooks.values()),
            [parameter.requires_grad for parameter in part.parameters(recurse=False)],
        )
        for part in module.modules()
    ]


def assert_untouched(module: nn.Module, before: tuple[dict[str, torch.Tensor], list[object]]) -> None:
    after = snapshot(module)
    assert after[1] == before[1]
    assert list(after[0]) == list(before[0])
    for key, tensor in after[0].items():
        assert torch.equal(tensor, before[0][key]), key


def assert_same(module: nn.Module, plain: nn.Module, data: ImageData) -> None:
    """Logits and the whole table of drops equal those of the plain network; neither is changed."""
    before, kept = snapshot(module), snapshot(plain)
    images, _ = data[:]
    with evaluating(module), evaluating(plain), torch.no_grad():
        assert torch.equal(Classifier(module)(images), Classifier(plain)(images))
    expected = table(plain, data)
    assert table(module, data).equals(expected)
    # the graph of another spelling rounds otherwise
    exact = table(module, data, sweep="auto")
    assert exact["clean_verdict"].equals(expected["clean_verdict"])
    np.testing.assert_allclose(exact["margin_drop"], expected["margin_drop"], atol=1e-5)
    # an oracle that says nothing would be satisfied by anything
    assert len(set(expected["margin_drop"].to_pylist())) > 3
    assert_untouched(module, before)
    assert_untouched(plain, kept)


def refuse(module: nn.Module, data: ImageData, problem: str, detail: str = "") -> None:
    """One InputError, whose first line is the problem; the network is left as it was."""
    before = snapshot(module)
    with pytest.raises(InputError) as error:
        table(module, data)
    lines = str(error.value).splitlines()
    assert lines[0] == problem
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["given", "allowed", "fix"]
    assert detail in str(error.value)
    assert_untouched(module, before)


# -- what a network returns


class Layers(nn.Sequential):
    """Layers one after another, typed."""

    def through(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return logits


class Returning(Layers):
    """The same layers under the same names; the output goes through a function."""

    def __init__(self, module: nn.Module, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__(OrderedDict(module.named_children()))
        self.function = function

    def forward(self, input: torch.Tensor) -> Any:
        return self.function(self.through(input))


class ModelOutput(OrderedDict[str, Any]):
    """As Hugging Face's: a dictionary whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


Named = namedtuple("Named", ["loss", "logits"])
NOISE = torch.full((1,), 7.0)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda logits: (logits, NOISE), id="tuple"),
        pytest.param(lambda logits: [logits, NOISE], id="list"),
        pytest.param(lambda logits: ((logits, NOISE), NOISE), id="nested tuple"),
        pytest.param(lambda logits: Named(NOISE, logits), id="namedtuple whose logits come second"),
        pytest.param(lambda logits: {"loss": NOISE, "logits": logits}, id="dict with logits"),
        pytest.param(lambda logits: {"out": logits}, id="dict of one entry"),
        pytest.param(lambda logits: ModelOutput(loss=NOISE, logits=logits), id="ModelOutput"),
        pytest.param(lambda logits: ModelOutput(out=logits), id="ModelOutput of one entry"),
        pytest.param(lambda logits: {"logits": (logits, NOISE)}, id="dict with a tuple of logits"),
    ],
)
def test_logits_are_found_in_what_a_network_returns(
    small_classifier: Classifier, small_data: ImageData, function: Callable[[torch.Tensor], object]
) -> None:
    assert_same(Returning(small_classifier.module, function).eval(), small_classifier.module, small_data)


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        (lambda logits: None, "NoneType"),
        (lambda logits: (), "tuple"),
        (lambda logits: {}, "dict"),
        (lambda logits: "logits", "str"),
        (lambda logits: logits.tolist(), "float"),  # the first of a list, and of that the first
        (lambda logits: {"scores": logits, "features": logits}, "dict with scores, features"),
        (lambda logits: ModelOutput(scores=logits, loss=NOISE), "ModelOutput with scores, loss"),
        (lambda logits: {"logits": None}, "NoneType"),
        (lambda logits: (NOISE, logits), "(1,) torch.float32"),
        (lambda logits: logits.bfloat16(), "(8, 3) torch.bfloat16"),
        (lambda logits: logits.double(), "(8, 3) torch.float64"),
    ],
)
def test_an_output_without_logits_is_refused_with_what_it_is(
    small_classifier: Classifier,
    small_data: ImageData,
    function: Callable[[torch.Tensor], object],
    shown: str,
) -> None:
    module = Returning(small_classifier.module, function).eval()
    refuse(module, small_data, "the network does not return logits", f"  given:   {shown}\n")


# -- wrappers


def compiled(module: nn.Module) -> nn.Module:
    wrapped: object = torch.compile(module, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


def test_torch_compile_is_taken_off(small_classifier: Classifier, small_data: ImageData) -> None:
    module = small_classifier.module
    wrapped = compiled(module)
    with torch.no_grad():  # compiled by now: hooks set later would be passed over
        wrapped(small_data[:][0])
    classifier = Classifier(wrapped)
    assert classifier.module is module
    assert classifier.unwrapped == ("torch.compile",)
    assert Classifier(module).unwrapped == ()
    assert classifier.sha256() == Classifier(module).sha256()
    assert_same(wrapped, module, small_data)


def test_data_parallel_is_taken_off(small_classifier: Classifier, small_data: ImageData) -> None:
    module = small_classifier.module
    wrapped = nn.DataParallel(module)
    classifier = Classifier(wrapped)
    assert (classifier.module, classifier.unwrapped) == (module, ("DataParallel",))
    assert_same(wrapped, module, small_data)


def test_distributed_data_parallel_is_taken_off(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, init_method=f"file://{tmp_path / 'store'}"
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(small_classifier.module)
        classifier = Classifier(wrapped)
        assert classifier.module is small_classifier.module
        assert classifier.unwrapped == ("DistributedDataParallel",)
        assert_same(wrapped, small_classifier.module, small_data)
    finally:
        torch.distributed.destroy_process_group()


def test_wrappers_come_off_one_after_the_other(small_classifier: Classifier) -> None:
    classifier = Classifier(compiled(nn.DataParallel(small_classifier.module)))
    assert classifier.module is small_classifier.module
    assert classifier.unwrapped == ("torch.compile", "DataParallel")
    assert classifier.name == "Sequential"


# -- what is refused when the classifier is made


class Compiled(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.compile(backend="eager")
    def forward(self, images: torch.Tensor) -> Any:
        return self.network(images)


def replaced(module: nn.Module, name: str, part: nn.Module) -> nn.Module:
    children = OrderedDict(module.named_children())
    children[name] = part
    return nn.Sequential(children).eval()


def in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


def look_alike(name: str, home: str) -> Callable[[nn.Module], nn.Module]:
    """The network with an activation that calls itself something else."""
    kind = type(name, (nn.ReLU,), {"__module__": home})
    return lambda module: replaced(module, "relu2", kind())


def with_buffer(make: Callable[[], torch.Tensor]) -> Callable[[nn.Module], nn.Module]:
    def add(module: nn.Module) -> nn.Module:
        module.register_buffer("scale", make())
        return module

    return add


def traced(module: nn.Module) -> nn.Module:
    found: nn.Module = torch.jit.trace(module, torch.rand(2, 1, 8, 8))  # type: ignore[no-untyped-call]
    return found


@pytest.mark.filterwarnings("ignore:.*(torch.jit|torch.quantize|quantized tensor).*")
@pytest.mark.parametrize(
    ("spoil", "problem", "shown"),
    [
        pytest.param(torch.jit.script, "is TorchScript", "RecursiveScriptModule", id="scripted"),
        pytest.param(traced, "is TorchScript", "the network: TopLevelTracedModule", id="traced"),
        pytest.param(
            lambda module: replaced(module, "relu2", torch.jit.script(nn.ReLU())),
            "is TorchScript",
            "relu2: RecursiveScriptModule",
            id="scripted in part",
        ),
        pytest.param(in_place, "was compiled in place", "the network: Sequential", id="compiled in place"),
        pytest.param(
            lambda module: replaced(module, "conv2", in_place(nn.Conv2d(4, 6, 3, padding=1))),
            "was compiled in place",
            "conv2: Conv2d",
            id="compiled in place in part",
        ),
        pytest.param(
            lambda module: replaced(module, "conv2", compiled(nn.Conv2d(4, 6, 3, padding=1))),
            "is compiled in part",
            "conv2: OptimizedModule",
            id="compiled in part",
        ),
        pytest.param(Compiled, "is compiled in part", "the network: Compiled", id="compiled forward"),
        pytest.param(
            look_alike("Linear", "torch.ao.nn.quantized.dynamic.modules.linear"),
            "is quantised",
            "relu2: Linear",
            id="quantised dynamically",
        ),
        pytest.param(
            look_alike("Conv2d", "torch.ao.nn.quantized.modules.conv"),
            "is quantised",
            "relu2: Conv2d",
            id="quantised statically",
        ),
        pytest.param(
            with_buffer(lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
            "is quantised",
            "scale",
            id="quantised tensor",
        ),
        pytest.param(
            look_alike("FullyShardedDataParallel", "torch.distributed.fsdp"),
            "is sharded over processes",
            "relu2: FullyShardedDataParallel",
            id="FSDP",
        ),
        pytest.param(
            look_alike("FSDPReLU", "torch.distributed.fsdp"),
            "is sharded over processes",
            "relu2: FSDPReLU",
            id="FSDP2",
        ),
        pytest.param(nn.Module.half, "is not in single precision", "conv1.weight: torch.float16", id="half"),
        pytest.param(
            nn.Module.bfloat16, "is not in single precision", "conv1.weight: torch.bfloat16", id="bfloat16"
        ),
        pytest.param(
            nn.Module.double, "is not in single precision", "conv1.weight: torch.float64", id="double"
        ),
        pytest.param(
            with_buffer(lambda: torch.ones(3, dtype=torch.float16)),
            "is not in single precision",
            "scale: torch.float16",
            id="half buffer",
        ),
        pytest.param(
            with_buffer(lambda: torch.ones(3, dtype=torch.complex64)),
            "is not in single precision",
            "scale: torch.complex64",
            id="complex buffer",
        ),
        pytest.param(
            lambda module: module.to("meta"),
            "has weights without values",
            "conv1.weight on the meta device",
            id="meta",
        ),
        pytest.param(
            lambda module: replaced(module, "fc", nn.LazyLinear(3)),
            "has weights without a shape yet",
            "fc.weight",
            id="lazy",
        ),
        pytest.param(
            lambda module: replaced(module, "norm1", nn.LazyBatchNorm2d(affine=False)),
            "has weights without a shape yet",
            "norm1.running_mean",
            id="lazy buffers",
        ),
    ],
)
def test_what_cannot_be_met_channel_by_channel_is_refused_at_once(
    small_classifier: Classifier, spoil: Callable[[nn.Module], nn.Module], problem: str, shown: str
) -> None:
    module = spoil(small_classifier.module)
    with pytest.raises(InputError) as error:
        Classifier(module)
    lines = str(error.value).splitlines()
    assert lines[0] == f"the network {problem}"
    assert lines[1].startswith("  given:   ")
    assert shown in lines[1]
    assert [line.split(":")[0].strip() for line in lines[2:]] == ["allowed", "fix"]


# -- weights that are computed, or want no gradient


def test_a_frozen_network_is_as_good(small_classifier: Classifier, small_data: ImageData) -> None:
    frozen = copy.deepcopy(small_classifier.module).requires_grad_(False)
    assert_same(frozen, small_classifier.module, small_data)


def test_a_network_in_train_mode_is_as_good_and_put_back(
    small_classifier: Classifier, small_data: ImageData
) -> None:
    training = copy.deepcopy(small_classifier.module).train()
    training.get_submodule("norm1").eval()
    with_dropout = nn.Sequential(OrderedDict(training.named_children()) | {"noise": nn.Dropout(0.5)})
    for module in (training, with_dropout):
        assert_same(module, small_classifier.module, small_data)
        assert module.training
        assert not module.get_submodule("norm1").training


def old_weight_norm(layer: nn.Module) -> nn.Module:
    return weight_norm(layer)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "parametrise", [parametrizations.weight_norm, parametrizations.spectral_norm, old_weight_norm]
)
def test_parametrised_weights_count_as_what_they_amount_to(
    small_classifier: Classifier, small_data: ImageData, parametrise: Callable[[nn.Module], nn.Module]
) -> None:
    plain = copy.deepcopy(small_classifier.module)
    module = small_classifier.module.train()
    for name in ("conv1", "conv2"):
        parametrise(module.get_submodule(name))
    with torch.no_grad():
        module(small_data[:][0])  # spectral norms move in train mode; here for the last time
        module.eval()
        module(small_data[:][0])
        for name in ("conv1", "conv2"):
            weight = getattr(module.get_submodule(name), "weight")  # noqa: B009
            plain.get_parameter(f"{name}.weight").copy_(weight)
        plain.get_submodule("norm1").load_state_dict(module.get_submodule("norm1").state_dict())
    assert_same(module, plain, small_data)


# -- how a forward is written


class Wired(nn.Module):
    """conv1, conv2 and conv3 with a residual, activations and the flattening as given."""

    def __init__(
        self, activate: Callable[[torch.Tensor], torch.Tensor], *, add: str = "new", flat: str = "flatten"
    ) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(6 * 64, 3)
        self.activate = activate
        self.add, self.flat = add, flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activate(self.conv1(x))
        y = self.conv2(x)
        if self.add == "new":
            y = y + x
        else:
            y += x
        y = self.activate(self.conv3(self.activate(y)))
        y = y.view(y.size(0), -1) if self.flat == "view" else y.flatten(1)
        logits: torch.Tensor = self.fc(y)
        return logits


class Anew(nn.Module):
    """An activation that makes a new tensor, in a module that is used for this alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, torch.zeros_like(x))


@pytest.mark.parametrize("add", ["new", "in place"])
@pytest.mark.parametrize(
    "activate",
    [
        pytest.param(functional.relu, id="F.relu"),
        pytest.param(torch.relu, id="torch.relu"),
        pytest.param(torch.relu_, id="torch.relu_"),
        pytest.param(lambda x: x.relu_(), id="x.relu_()"),
        pytest.param(lambda x: functional.relu(x, inplace=True), id="F.relu in place"),
        pytest.param(nn.ReLU(), id="one nn.ReLU for all"),
        pytest.param(nn.ReLU(inplace=True), id="one nn.ReLU in place for all"),
        pytest.param(lambda x: x.clamp(min=0), id="clamp"),
        pytest.param(lambda x: x * (x > 0), id="mask"),
    ],
)
def test_how_an_activation_and_a_sum_are_written_makes_no_difference(
    small_data: ImageData, activate: Callable[[torch.Tensor], torch.Tensor], add: str
) -> None:
    assert_same(Wired(activate, add=add).eval(), Wired(Anew()).eval(), small_data)


def test_a_view_after_a_convolution_is_read(small_data: ImageData) -> None:
    assert_same(Wired(torch.relu, flat="view").eval(), Wired(torch.relu).eval(), small_data)


class Shared(nn.Module):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.again(torch.relu(self.first(x))))
        logits: torch.Tensor = self.fc(torch.relu(self.again(x)).flatten(1))
        return logits


def without_channel(module: nn.Module, layer: str, channel: int) -> nn.Module:
    """A copy whose kernel and bias of this channel are zero: the channel's map is zero by construction."""
    copied = copy.deepcopy(module)
    target = copied.get_submodule(layer)
    assert isinstance(target, nn.Conv2d)
    with torch.no_grad():
        target.weight[channel] = 0
        if target.bias is not None:
            target.bias[channel] = 0
    return copied


def test_a_shared_convolution_loses_its_channel_in_every_call(small_data: ImageData) -> None:
    module = Shared().eval()
    images, labels = small_data[:]
    rows = table(module, small_data, layer="again")
    assert rows["layer"].to_pylist() == ["again"] * 8
    whole = Classifier(module, mean=[0.4], std=[0.3])
    right = int((whole(images).argmax(-1) == labels).sum())
    drops = []
    for channel in range(4):
        without = Classifier(without_channel(module, "again", channel), mean=[0.4], std=[0.3])
        drops += [(right - int((without(images).argmax(-1) == labels).sum())) / 40] * 2
    assert rows["clean_drop"].to_pylist() == pytest.approx(drops, abs=1e-12)
    assert len(set(drops)) > 1


def test_a_network_that_works_on_its_input_in_place_is_as_good(
    small_classifier: Classifier, small_data: ImageData
) -> None:
    class InPlace(Layers):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.through(input.sub_(0.1).mul_(2))

    class NotInPlace(Layers):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.through((input - 0.1) * 2)

    children = OrderedDict(small_classifier.module.named_children())
    pixels = np.asarray(small_data.images).copy()
    assert_same(InPlace(children).eval(), NotInPlace(children).eval(), small_data)
    images, labels = small_data[:8]
    kept = images.clone()
    for mean in (None, [0.4]):
        probe(
            Classifier(InPlace(children), mean=mean, std=mean and [0.3]), images, labels, small_data.classes
        )
    assert torch.equal(images, kept)
    assert np.array_equal(np.asarray(small_data.images), pixels)


# -- what the probe refuses


def test_normalisation_by_the_batch_is_refused(small_classifier: Classifier, small_data: ImageData) -> None:
    module = replaced(small_classifier.module, "norm1", nn.BatchNorm2d(4, track_running_stats=False))
    refuse(module, small_data, "the normalisation norm1 uses the statistics of the batch")


def test_an_output_that_depends_on_the_number_of_calls_is_refused(
    small_classifier: Classifier, small_data: ImageData
) -> None:
    class Counting(Layers):
        count = 0

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return self.through(input) + 0.1 * self.count

    class CountingInABuffer(Layers):
        calls: torch.Tensor

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.through(input) + 0.1 * self.calls

    children = OrderedDict(small_classifier.module.named_children())
    buffered = CountingInABuffer(children)
    buffered.register_buffer("calls", torch.zeros(()))
    for module in (Counting(children), buffered):
        refuse(module.eval(), small_data, "the outputs change between passes", "remove its noise")
    assert buffered.calls == 0


class Remembering(Layers):
    """Every pass leaves something in a buffer; the output never depends on it."""

    seen: torch.Tensor

    def __init__(self, module: nn.Module, keep: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(OrderedDict(module.named_children()))
        self.register_buffer("seen", torch.zeros(1))
        self.keep = keep

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.seen = self.keep(self.seen, input.detach())
        return self.through(input)


@pytest.mark.parametrize(
    "keep",
    [
        pytest.param(lambda seen, images: seen.add_(1), id="in place"),
        pytest.param(lambda seen, images: seen + 1, id="anew"),
        pytest.param(lambda seen, images: torch.cat([seen, seen]), id="growing"),
        pytest.param(lambda seen, images: images.mean().view(1), id="the same in every pass"),
    ],
)
def test_a_network_that_changes_its_buffers_is_refused_and_has_them_back(
    small_classifier: Classifier,
    small_data: ImageData,
    keep: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    module = Remembering(small_classifier.module, keep).eval()
    before = Classifier(module).sha256()
    refuse(module, small_data, "the network changes as it runs", "other values in seen after")
    assert Classifier(module).sha256() == before


def test_a_network_that_takes_channels_last_is_told_apart(
    small_classifier: Classifier, small_data: ImageData
) -> None:
    class ChannelsLast(Layers):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.through(input.permute(0, 3, 1, 2))

    class Wrapped(Layers):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.through(input.permute(0, 2, 3, 1))

    module = ChannelsLast(OrderedDict(small_classifier.module.named_children())).eval()
    problem = "the network cannot process these images"
    refuse(module, small_data, problem, "fix:     the network takes channels last; wrap it in a module that")
    # what the message says to do helps
    plain = table(small_classifier.module, small_data)
    mended = table(Wrapped(OrderedDict(network=module)).eval(), small_data)
    assert mended.drop_columns(["layer"]).equals(plain.drop_columns(["layer"]))


def test_a_network_of_a_fixed_size_is_refused_with_what_torch_says(
    small_classifier: Classifier, small_data: ImageData
) -> None:
    smaller = ImageData(np.asarray(small_data.images)[..., :6, :6], small_data.labels, small_data.classes)
    problem = "the network cannot process these images"
    refuse(small_classifier.module, smaller, problem, "fix:     choose the data this network was trained on")
    refuse(small_classifier.module, smaller, problem, "mat1 and mat2 shapes cannot be multiplied")

    class Asserting(Layers):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            assert input.shape[-1] == 28, "28 pixels are wanted"
            return self.through(input)

    asserting = Asserting(OrderedDict(small_classifier.module.named_children())).eval()
    refuse(asserting, small_data, problem, "28 pixels are wanted")


@pytest.mark.parametrize("epsilons", [[], ["0.1"]])
def test_a_forward_without_gradient_is_refused(
    small_classifier: Classifier, small_data: ImageData, epsilons: list[str]
) -> None:
    class Detached(Layers):
        @torch.no_grad()
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.through(input)

    module = Detached(OrderedDict(small_classifier.module.named_children())).eval()
    before = snapshot(module)
    with pytest.raises(InputError, match=r"^the network passes no gradient.*\n.*\n.*\n.*remove torch"):
        fn.dropout(Classifier(module), small_data, epsilons=epsilons)
    assert_untouched(module, before)


def test_a_network_without_parameters_has_no_neuron_but_an_accuracy(small_data: ImageData) -> None:
    class Blobs(nn.Module):
        """The brightness of three pairs of rows, which is how the classes are made."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 0, 2 * row : 2 * row + 3, 1:7].mean((1, 2)) for row in range(3)], 1)

    module = Blobs()
    problem = "no Conv2d or Linear module is executed besides the one that yields the logits"
    refuse(module, small_data, problem, "(no layer at all)")
    curve = fn.robust_accuracy(Classifier(module), small_data, epsilons=["0", "0.5"])
    assert (curve.at(0).value, curve.at(1).value) == (1.0, 0.0)
    assert Classifier(module).device == torch.device("cpu")


# -- a batch that is too large


class Small(Layers):
    """Takes 64 images at once and no more."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if len(input) > 64:
            raise RuntimeError(f"out of memory: {len(input)} images")
        return self.through(input)


def test_a_batch_that_is_too_large_ends_the_run_and_a_smaller_one_goes_through(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = small_data.take(np.arange(100) % 40)
    module = Small(OrderedDict(small_classifier.module.named_children())).eval()
    classifier = Classifier(module, mean=[0.4], std=[0.3], name="small")
    before = snapshot(module)
    with caplog.at_level(logging.ERROR), pytest.raises(fn.IncompleteError) as error:
        fn.analyze(classifier, data, epsilons=[], batch_size=100, output=tmp_path / "large")
    lines = str(error.value).splitlines()
    assert lines[0] == "3 units of work failed, 3 of 8 are done and kept"
    assert lines[1] == "  predictions images 0-99: RuntimeError: out of memory: 100 images"
    assert lines[4] == "  fix:     if 100 images at once are too many, begin anew with --batch-size;"
    assert not caplog.records
    assert_untouched(module, before)
    with pytest.raises(fn.IncompleteError, match="is not finished"):
        fn.open_run(tmp_path / "large")
    # the folder keeps to its spec
    with pytest.raises(InputError, match=r"another run\n.*differs in: batch_size"):
        fn.analyze(classifier, data, epsilons=[], batch_size=50, output=tmp_path / "large")
    run = fn.analyze(
        classifier, data, epsilons=[], sweep="reference", batch_size=50, output=tmp_path / "smaller"
    )
    plain = fn.analyze(
        Classifier(small_classifier.module, mean=[0.4], std=[0.3], name="small"),
        data,
        epsilons=[],
        sweep="reference",
        batch_size=50,
        output=tmp_path / "plain",
    )
    assert run.neurons.equals(plain.neurons)
    assert_untouched(module, before)


# -- any network


class Block(nn.Module):
    """A convolution, perhaps a norm, perhaps a joint with the block's input, an activation."""

    def __init__(self, plan: dict[str, Any], channels: int, shared: nn.ReLU) -> None:
        super().__init__()
        groups = {"dense": 1, "grouped": 2, "depthwise": channels}[plan["groups"]]
        outputs = channels * plan["times"]
        kernel = plan["kernel"]
        self.conv = nn.Conv2d(
            channels,
            outputs,
            kernel,
            stride=plan["stride"],
            padding=kernel // 2,
            groups=groups,
            bias=plan["bias"],
            padding_mode=plan["padding_mode"],
        )
        self.norm: nn.Module = nn.Identity()
        if plan["norm"]:
            self.norm = nn.BatchNorm2d(outputs)
            for name, tensor in self.norm.state_dict().items():
                if name == "running_var":
                    nn.init.uniform_(tensor, 0.5, 2)
                elif tensor.is_floating_point():
                    nn.init.normal_(tensor)
        self.relu = {"in place": nn.ReLU(inplace=True), "reused": shared}.get(plan["activation"], nn.ReLU())
        self.functional = plan["activation"] == "functional"
        alike = plan["stride"] == 1
        self.join = plan["join"] if alike and (plan["join"] == "cat" or plan["times"] == 1) else "none"
        self.channels = outputs + (channels if self.join == "cat" else 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.conv(x))
        if self.join == "add":
            y = y + x
        elif self.join == "add in place":
            y += x
        elif self.join == "cat":
            y = torch.cat([y, x], dim=1)
        activated: torch.Tensor = functional.relu(y) if self.functional else self.relu(y)
        return activated


class Drawn(nn.Module):
    """Blocks one after another, the mean over positions, a linear layer to three classes."""

    def __init__(self, plans: list[dict[str, Any]], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        shared, channels, blocks = nn.ReLU(), 2, []
        for plan in plans:
            blocks.append(Block(plan, channels, shared))
            channels = blocks[-1].channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.blocks(images).mean(dim=(2, 3)))
        return logits


PLANS = st.lists(
    st.fixed_dictionaries(
        {
            "kernel": st.sampled_from([1, 3]),
            "stride": st.sampled_from([1, 2]),
            "groups": st.sampled_from(["dense", "grouped", "depthwise"]),
            "times": st.sampled_from([1, 2]),
            "bias": st.booleans(),
            "padding_mode": st.sampled_from(["zeros", "reflect"]),
            "norm": st.booleans(),
            "activation": st.sampled_from(["new", "functional", "in place", "reused"]),
            "join": st.sampled_from(["none", "add", "add in place", "cat"]),
        }
    ),
    min_size=1,
    max_size=3,
)


@settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(plans=PLANS, seed=st.integers(0, 2**31 - 1), training=st.booleans(), frozen=st.booleans())
def test_a_dropped_channel_is_one_whose_kernel_and_bias_are_zero(
    plans: list[dict[str, Any]], seed: int, training: bool, frozen: bool
) -> None:
    module = Drawn(plans, seed).requires_grad_(not frozen).train(training)
    classifier = Classifier(module, mean=[0.3, 0.6], std=[0.5, 0.25])
    images = torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(6) % 3
    before = snapshot(module)
    probe(classifier, images, labels, ("one", "two", "three"))
    layers = [layer for layer in executed_layers(classifier, images) if layer.kind == "Conv2d"]
    assert [layer.name for layer in layers] == [f"blocks.{place}.conv" for place in range(len(plans))]
    for layer in {layers[0].name: layers[0], layers[-1].name: layers[-1]}.values():
        for channel in sorted({0, layer.channels // 2, layer.channels - 1}):
            without = Classifier(
                without_channel(module, layer.name, channel), mean=[0.3, 0.6], std=[0.5, 0.25]
            )
            with evaluating(without), torch.no_grad():
                expected = without(images)
                expected_logits, expected_sign = gradient_sign(without, images, labels)
            dropped = intervening(classifier, layer.site("conv"), [channel], drop(0.0))
            with evaluating(classifier), torch.no_grad(), dropped:
                found = classifier(images)
                logits, sign = gradient_sign(classifier, images, labels)
            # bit for bit: the other channels come from the same kernels, and 0 times anything is 0
            assert torch.equal(found, expected)
            assert torch.equal(found.argmax(-1), expected.argmax(-1))
            assert torch.equal(logits, expected_logits)
            assert torch.equal(sign, expected_sign)
    assert_untouched(module, before)
