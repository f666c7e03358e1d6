from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fragile_neurons import Classifier, InputError, load_model
from fragile_neurons.models.loading import MODELS, Model
from fragile_neurons.models.weights import Weights, fit_weights, read_weights

State = dict[str, torch.Tensor]


def network(classes: int = 3) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 4, 3),
            norm=nn.BatchNorm2d(4),
            flatten=nn.Flatten(),
            fc=nn.Linear(4 * 36, classes),
        )
    )


@pytest.fixture
def state() -> State:
    """Weights of the small network, none of them as a fresh one has them."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(one.shape, generator=generator) if one.is_floating_point() else torch.tensor(5)
        for key, one in network().state_dict().items()
    }


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    """The small network as a model with a name of its own and a normalisation."""
    monkeypatch.setitem(MODELS, "small", Model("small", network, "mnist", mean=(0.1,), std=(0.3,)))
    return "small"


def assert_same(found: State, expected: State) -> None:
    assert set(found) == set(expected)
    for key, one in expected.items():
        assert found[key].dtype == one.dtype, key
        assert torch.equal(found[key], one), key


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "safetensors": save_file,
    "torch zip": torch.save,
    "torch legacy": save_legacy,
}


# -- what is read


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("ending", ["pt", "safetensors", ""])
def test_every_format_is_known_by_its_bytes_and_not_by_its_name(
    writer: str, ending: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / f"w.{ending}"
    WRITERS[writer](state, path)
    weights = read_weights(path)
    assert_same(weights.tensors, state)
    assert (weights.mean, weights.std) == (None, None)


@pytest.mark.parametrize("writer", ["torch zip", "torch legacy"])
@pytest.mark.parametrize("prefixes", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("nested", [(), ("state_dict",), ("model",), ("state_dict", "model")])
def test_wrappers_and_prefixes_are_taken_off(
    writer: str, prefixes: str, nested: tuple[str, ...], state: State, tmp_path: Path
) -> None:
    content: object = {f"{prefixes}{key}": one for key, one in state.items()}
    for key in reversed(nested):
        content = {"epoch": 3, key: content, "name": "best", "history": [0.5, {"loss": None}]}
    WRITERS[writer](content, tmp_path / "w.pt")
    if prefixes == "_orig_mod.module.":  # a compiled network inside DataParallel is the other order
        with pytest.raises(InputError, match=r"conv\.weight: missing"):
            fit_weights(network(), read_weights(tmp_path / "w.pt"), "w.pt")
    else:
        assert_same(read_weights(tmp_path / "w.pt").tensors, state)


def test_a_prefix_is_part_of_the_name_unless_all_have_it(tmp_path: Path) -> None:
    content = {"module.a": torch.ones(1), "b": torch.ones(2)}
    save_file(content, tmp_path / "w.safetensors")
    assert set(read_weights(tmp_path / "w.safetensors").tensors) == {"module.a", "b"}


def test_views_of_one_storage_come_with_their_own_values(tmp_path: Path) -> None:
    block = torch.arange(12.0).view(3, 4)
    content = {"whole": block, "transposed": block.T, "row": block[1], "step": block[:, ::2]}
    for save in (torch.save, save_legacy):
        save(content, tmp_path / "w.pt")
        assert_same(read_weights(tmp_path / "w.pt").tensors, content)


def test_parameters_and_an_optimiser_beside_them_are_read(state: State, tmp_path: Path) -> None:
    module = network()
    module.load_state_dict(state)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.rand(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    expected = {key: one.clone() for key, one in module.state_dict().items()}
    content = {"model": dict(module.state_dict(keep_vars=True)), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt").tensors
    assert all(torch.equal(found[key], one) for key, one in expected.items())


# -- what is fitted


def test_old_files_without_the_count_of_batches_fit(state: State) -> None:
    module = network()
    old = {key: one for key, one in state.items() if "num_batches_tracked" not in key}
    assert len(old) == len(state) - 1
    fit_weights(module, Weights(old), "old.pt")
    loaded = module.state_dict()
    assert all(torch.equal(loaded[key], one) for key, one in old.items())
    assert loaded["norm.num_batches_tracked"] == 0
    fit_weights(module, Weights({**state, "gone.num_batches_tracked": torch.tensor(1)}), "other.pt")
    assert_same(dict(module.state_dict()), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_into_the_network(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    stored = {key: one.to(dtype) if one.is_floating_point() else one for key, one in state.items()}
    module = network()
    torch.save(stored, tmp_path / "w.pt")
    fit_weights(module, read_weights(tmp_path / "w.pt"), tmp_path / "w.pt")
    for key, one in module.state_dict().items():
        assert one.dtype == state[key].dtype
        assert torch.equal(one, stored[key].to(one.dtype)), key


DIFFERENCES: dict[str, tuple[Callable[[State], State], str]] = {
    "a missing key": (
        lambda state: {key: one for key, one in state.items() if key != "conv.bias"},
        r"conv\.bias: missing; 0 more differ\n +allowed: +conv\.bias: \(4,\)\n",
    ),
    "two missing keys": (
        lambda state: {key: one for key, one in state.items() if not key.startswith("fc")},
        r"fc\.weight: missing; 1 more differ\n +allowed: +fc\.weight: \(3, 144\)\n",
    ),
    "an additional key": (
        lambda state: {**state, "head.bias": torch.zeros(7)},
        r"head\.bias: \(7,\); 0 more differ\n +allowed: +head\.bias: not in this network\n",
    ),
    "a wrong shape": (
        lambda state: {**state, "conv.weight": torch.zeros(4, 3, 3, 3)},
        r"conv\.weight: \(4, 3, 3, 3\); 0 more differ\n +allowed: +conv\.weight: \(4, 1, 3, 3\)\n",
    ),
    "another number of classes": (
        lambda state: {**state, "fc.weight": torch.zeros(10, 144), "fc.bias": torch.zeros(10)},
        r"fc\.weight: \(10, 144\); 1 more differ\n +allowed: +fc\.weight: \(3, 144\)\n.*number of classes",
    ),
    "another naming": (
        lambda state: {f"net.{key}": one for key, one in state.items()},
        r"conv\.weight: missing; 15 more differ\n.*\n +fix: +choose the model, and",  # 8 on each side
    ),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_weights_of_another_network_are_refused_naming_the_first_difference(case: str, state: State) -> None:
    change, expected = DIFFERENCES[case]
    module = network()
    before = {key: one.clone() for key, one in module.state_dict().items()}
    with pytest.raises(InputError, match=rf"do not fit the network\n +given: +w\.pt with {expected}"):
        fit_weights(module, Weights(change(state)), "w.pt")
    assert_same(dict(module.state_dict()), before)


@pytest.mark.parametrize("kind", ["complex", "meta"])
def test_what_are_no_plain_numbers_is_refused(kind: str, state: State) -> None:
    odd = state["fc.bias"].to(torch.complex64) if kind == "complex" else state["fc.bias"].to("meta")
    with pytest.raises(
        InputError, match=r"not plain numbers\n.*w\.pt with fc\.bias: torch\..*\n.*\n +fix: +save"
    ):
        fit_weights(network(), Weights({**state, "fc.bias": odd}), "w.pt")


# -- the normalisation beside them


def normalisation(classifier: Classifier) -> tuple[list[float], list[float]]:
    assert classifier.mean is not None
    assert classifier.std is not None
    return classifier.mean.flatten().tolist(), classifier.std.flatten().tolist()


def test_a_normalisation_stored_with_the_weights_is_used_unless_another_is_given(
    registered: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(
        state, path, metadata={"normalisation": json.dumps({"mean": [0.25], "std": [0.5]}), "format": "pt"}
    )
    assert read_weights(path).mean == (0.25,)
    assert read_weights(path).std == (0.5,)
    assert normalisation(load_model(registered, weights=path)) == ([0.25], [0.5])
    given = load_model(registered, weights=path, mean=[0.75], std=[2.0])
    assert normalisation(given) == ([0.75], [2.0])
    save_file(state, path)
    mean, std = normalisation(load_model(registered, weights=path))
    assert mean == pytest.approx([0.1])
    assert std == pytest.approx([0.3])


def test_half_a_normalisation_is_refused_wherever_it_comes_from(
    registered: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state, path, metadata={"normalisation": '{"std": [0.5]}'})
    with pytest.raises(InputError, match=r"mean and std do not go together\n.*mean=None, std=\[0\.5\]"):
        load_model(registered, weights=path)
    save_file(state, path, metadata={"normalisation": '{"mean": [0.5], "std": [0.5]}'})
    with pytest.raises(InputError, match=r"mean and std do not go together\n.*mean=\[0\.1\], std=None"):
        load_model(registered, weights=path, mean=[0.1])


@pytest.mark.parametrize("text", ["", "0.5", "abc", "[[1]]", '["x"]', '"12"', '{"a": 1}', "[" * 100_000])
def test_a_normalisation_that_is_no_list_of_numbers_is_refused(
    text: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state, path, metadata={"normalisation": f'{{"mean": {text}, "std": [0.5]}}'})
    with pytest.raises(InputError, match=r"the weights cannot be read\n.*w\.safetensors: ."):
        read_weights(path)


# -- what is not a file of weights


class Whole(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated, people have such files all the same
        torch.jit.script(Whole()).save(str(path))  # type: ignore[no-untyped-call]


def checkpoint(path: Path) -> None:
    module = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    torch.save(optimizer.state_dict(), path)


def truncate(path: Path) -> None:
    torch.save({"a": torch.ones(99)}, path)
    path.write_bytes(path.read_bytes()[:400])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing file": (lambda path: None, "no such file"),
    "an empty file": (lambda path: path.write_bytes(b""), "the file is empty"),
    "a folder": (lambda path: path.mkdir(), "this is not a file"),
    "a web page": (lambda path: path.write_text("\n<!DOCTYPE html>\n<html>404</html>"), "this is a web page"),
    "bytes": (lambda path: path.write_bytes(b"\x13\x37" + bytes(range(200))), r"it begins with b'\\x137"),
    "text": (lambda path: path.write_text("version https://git-lfs"), "it begins with b'version '"),
    "a whole network": (lambda path: torch.save(Whole(), path), "more than tensors .*could run code"),
    "a whole network, legacy": (
        lambda path: save_legacy(Whole(), path),
        "more than tensors .*could run code",
    ),
    "an optimiser": (checkpoint, "'state' is a dict, not a tensor; is the state dict nested"),
    "another nesting": (
        lambda path: torch.save({"net": {"a": torch.ones(1)}}, path),
        "'net' is a dict, not a tensor; is the state dict nested",
    ),
    "TorchScript": (script, "this is TorchScript: it holds code"),
    "a tensor": (lambda path: torch.save(torch.ones(1), path), "it holds a tensor, not a state dict"),
    "a list": (lambda path: torch.save([torch.ones(1)], path), "it holds a list, not a state dict"),
    "nothing": (lambda path: torch.save({}, path), "it holds nothing, not a state dict"),
    "no text": (
        lambda path: torch.save({"a": torch.ones(1), 3: torch.ones(1)}, path),
        "3 is the name of a tensor, but not text",
    ),
    "a sparse tensor": (lambda path: torch.save({"a": torch.eye(2).to_sparse()}, path), "."),
    "a truncated zip": (truncate, "zip"),
    "too long a name": (lambda path: None, "too long"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_whatever_else_is_one_readable_refusal(kind: str, tmp_path: Path) -> None:
    make, expected = BROKEN[kind]
    path = tmp_path / ("x" * 300 if kind == "too long a name" else "w.pt")
    make(path)
    with pytest.raises(
        InputError,
        match=rf"the weights cannot be read\n +given: +{path}: .*{expected}.*\n"
        r" +allowed: +a state dict, from safetensors or torch\.save.*\n +fix: +check the path, or save",
    ) as error:
        read_weights(path)
    assert len(str(error.value)) < 1000
    assert error.value.__cause__ is None


def test_the_home_of_nobody_is_a_missing_file(registered: str) -> None:
    with pytest.raises(
        InputError, match=r"the weights cannot be read\n.*~nobody-of-this-name/w\.pt: no such"
    ):
        load_model(registered, weights="~nobody-of-this-name/w.pt")
