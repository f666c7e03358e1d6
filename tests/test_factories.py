from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fragile_neurons import InputError, load_model
from fragile_neurons.models.factories import make_own
from fragile_neurons.neurons import executed_layers
from fragile_neurons.own import absolute, source_sha256

NETWORK = """
from collections import OrderedDict
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width={width}):
        super().__init__(OrderedDict(
            stem=nn.Conv2d(1, width, 3), flatten=nn.Flatten(), hidden=nn.Linear(36 * width, 5),
            logits=nn.Linear(5, 2),
        ))


def make():
    return Net()


ready = Net()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; what Python knows of modules and paths is the same afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    paths, modules = list(sys.path), dict(sys.modules)
    yield tmp_path
    assert sys.path == paths
    assert {name: sys.modules.get(name) for name in modules} == modules
    assert not [name for name in set(sys.modules) - set(modules) if str(tmp_path) in repr(sys.modules[name])]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def network(width: int = 4) -> str:
    return NETWORK.format(width=width)


def first_width(module: nn.Module) -> int:
    return len(module.get_parameter("stem.weight"))


# -- what is found


@pytest.mark.parametrize("attribute", ["make", "Net", "ready"])
@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("net.py", "net.py"),
        ("net.py", "./net.py"),
        ("folder/net.py", "folder/net.py"),
        ("a folder: odd/my-net.2.py", "a folder: odd/my-net.2.py"),
        ("net.py", "net"),
        ("package/net.py", "package.net"),
        ("package/__init__.py", "package"),
    ],
)
def test_a_function_a_class_or_a_network_is_found_in_a_file_or_a_package(
    file: str, place: str, attribute: str, here: Path
) -> None:
    write(here / file, network())
    module = make_own(f"{place}:{attribute}")
    assert type(module).__name__ == "Net"
    assert first_width(module) == 4


def test_a_file_is_found_from_any_folder_by_its_absolute_name(here: Path) -> None:
    write(here / "net.py", network())
    name = absolute("net.py:make")
    assert name == f"{here}/net.py:make"
    assert absolute(name) == name
    assert absolute("package.net:make") == "package.net:make"
    (here / "elsewhere").mkdir()
    os.chdir(here / "elsewhere")
    assert first_width(make_own(name)) == 4


def test_a_home_is_found_and_that_of_nobody_is_no_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    write(here / "net.py", network())
    assert first_width(make_own("~/net.py:make")) == 4
    assert absolute("~/net.py:make") == f"{here}/net.py:make"
    with pytest.raises(InputError, match=r"there is no file ~nobody-of-this-name/net\.py\n"):
        make_own("~nobody-of-this-name/net.py:make")


def test_a_file_imports_its_siblings_and_not_those_of_the_current_folder(here: Path) -> None:
    write(here / "there/net.py", "from parts import Net\nfrom more.parts import other\n\nmake = Net")
    write(here / "there/parts.py", network(6))
    write(here / "there/more/parts.py", "other = 1")
    write(here / "parts.py", network(2))
    assert first_width(make_own("there/net.py:make")) == 6


def test_files_of_one_name_and_their_siblings_do_not_get_mixed_up(here: Path) -> None:
    for width in (3, 4, 5):
        write(here / f"{width}/net.py", "from parts import make")
        write(here / f"{width}/parts.py", network(width))
    for width in (3, 4, 5, 3):
        assert first_width(make_own(f"{width}/net.py:make")) == width
    for width in (3, 4, 5):
        os.chdir(here / str(width))
        assert first_width(make_own("parts:make")) == width


def test_a_file_that_was_changed_is_read_anew(here: Path) -> None:
    for width in (3, 40):
        write(here / "net.py", network(width))
        assert first_width(make_own("net.py:make")) == width
        write(here / "package/net.py", network(width))
        assert first_width(make_own("package.net:make")) == width


def test_a_module_written_in_the_same_moment_as_the_last_look_is_found(here: Path) -> None:
    write(here / "one.py", network())
    make_own("one:make")
    then = here.stat()
    write(here / "two.py", network())
    os.utime(here, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert first_width(make_own("two:make")) == 4


def test_a_file_may_have_the_name_of_a_module_in_use(here: Path) -> None:
    write(here / "json.py", network())
    known = sys.modules["json"]
    assert first_width(make_own("json.py:make")) == 4
    assert sys.modules["json"] is known


def test_a_file_may_hold_dataclasses_that_look_up_their_module(here: Path) -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass, KW_ONLY\n"
    text += "@dataclass\nclass Options:\n    _: KW_ONLY\n    width: int = 4\n"
    write(here / "net.py", text + network() + "\nother = lambda: Net(Options().width)")
    assert first_width(make_own("net.py:other")) == 4


def test_layers_are_named_as_the_network_names_them_and_its_weights_are_kept(here: Path) -> None:
    write(here / "net.py", "import torch\ntorch.manual_seed(3)\n" + network())
    state = torch.random.get_rng_state()
    classifier = load_model("net.py:ready", mean=[0.5], std=[0.25])
    torch.manual_seed(3)
    first = nn.Conv2d(1, 4, 3).weight
    torch.random.set_rng_state(state)
    assert torch.equal(classifier.module.get_parameter("stem.weight"), first)
    assert classifier.name == "net.py:ready"
    assert not classifier.training
    layers = executed_layers(classifier, torch.rand(2, 1, 8, 8))
    assert [layer.name for layer in layers] == ["stem", "hidden", "logits"]


@pytest.mark.parametrize("attribute", ["make", "small"])
def test_the_layout_of_ones_own_network_is_left_alone(attribute: str, here: Path) -> None:
    write(here / "net.py", network() + "\nsmall = make\n")
    wide = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last).weight
    assert not wide.is_contiguous()
    write(here / "net.py", network().replace("Conv2d(1,", "Conv2d(2,") + "\nsmall = make\n")
    classifier = load_model(f"net.py:{attribute}")
    assert classifier.module.get_parameter("stem.weight").is_contiguous()


# -- what is refused

ALLOWED = r" +allowed: +package\.module:factory or path/file\.py:factory, callable without arg"
FIX = r" +fix: +write a function without parameters that returns the network"


def refused(name: str, problem: str) -> None:
    with pytest.raises(InputError, match=rf"^{problem}\n +given: +.*\n{ALLOWED}.*\n{FIX}") as error:
        make_own(name)
    assert f"given:   {name}\n" in str(error.value)
    assert str(error.value).count("\n") == 3


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("gone.py:make", r"there is no file gone\.py"),
        ("folder.py:make", r"there is no file folder\.py"),
        ("gone:make", r"gone cannot be imported: ModuleNotFoundError: No module named 'gone'"),
        ("package.gone:make", r"package\.gone cannot be imported: ModuleNotFoundError: .*'package\.gone'"),
        (":make", r" cannot be imported: ValueError: Empty module name"),
        ("..net:make", r"\.\.net cannot be imported: TypeError: .*relative import for '\.\.net'"),
        ("net.py:", r"net\.py has no name after the colon"),
        ("net.py:gone", r"net\.py has no gone"),
        ("net:gone", r"net has no gone"),
        ("net.py:None", r"net\.py has no None"),
    ],
)
def test_what_is_not_there_is_named(name: str, problem: str, here: Path) -> None:
    (here / "folder.py").mkdir()
    write(here / "package/__init__.py", "")
    write(here / "net.py", network())
    refused(name, problem)


@pytest.mark.parametrize("place", ["net.py", "net"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def make(width): ...", r"make\(\) failed: TypeError: make\(\) missing 1 required .*'width'"),
        ("def make():\n    raise KeyError('depth\\nof it')", r"make\(\) failed: KeyError: 'depth\\nof it'"),
        ("def make():\n    raise ValueError('two\\n lines')", r"make\(\) failed: ValueError: two lines"),
        ("import sys\ndef make():\n    sys.exit(3)", r"make\(\) failed: SystemExit: 3"),
        ("def make():\n    return {'a': 1}", r"make\(\) returns a dict, not a torch\.nn\.Module"),
        ("def make(): ...", r"make\(\) returns a NoneType, not a torch\.nn\.Module"),
        (
            "from torch import nn\ndef make():\n    return nn.Linear",
            r"make\(\) returns a type, not a torch\.nn\.Module",
        ),
        ("make = 5", r"make\(\) failed: TypeError: 'int' object is not callable"),
        ("def make():\n    open('gone.pt')", r"make\(\) failed: FileNotFoundError: .*'gone\.pt'"),
        ("def make(:\n    pass", r"net(\.py)? cannot be imported: SyntaxError: .*\(net\.py, line 1\)"),
        ("make = \0", r"net(\.py)? cannot be imported: (SyntaxError|ValueError): .*null bytes"),
        ("import parts\nraise OSError('no')", r"net(\.py)? cannot be imported: OSError: no"),
        ("open('gone.pt')", r"net(\.py)? cannot be imported: FileNotFoundError: .*'gone\.pt'"),
        ("import sys\nsys.exit('bye')", r"net(\.py)? cannot be imported: SystemExit: bye"),
        ("import gone", r"net(\.py)? cannot be imported: ModuleNotFoundError: No module named 'gone'"),
        ("def f():\n    f()\nf()", r"net(\.py)? cannot be imported: RecursionError: .*"),
    ],
)
def test_what_goes_wrong_inside_is_one_error_that_names_it(
    place: str, text: str, problem: str, here: Path
) -> None:
    write(here / "parts.py", "value = 1")
    write(here / "net.py", text)
    refused(f"{place}:make", problem)
    write(here / "net.py", network(30))  # of another length, so that no cache takes it for the old one
    assert first_width(make_own(f"{place}:make")) == 30


def test_an_interruption_is_none_of_the_files_errors(here: Path) -> None:
    write(here / "net.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        make_own("net.py:make")


@pytest.mark.parametrize("change", ["sys.path.clear()", "sys.path.pop(0)", "sys.path.insert(0, '/x')"])
def test_whatever_a_file_does_to_the_import_path_is_undone(change: str, here: Path) -> None:
    write(here / "net.py", "import sys\n" + network() + f"\n{change}\n")
    before = list(sys.path)
    assert first_width(make_own("net.py:make")) == 4
    assert sys.path == before


def test_what_is_imported_from_elsewhere_stays(here: Path) -> None:
    # a package that is installed below the current folder, as in .venv, is not of that folder
    write(here / "venv/installed/__init__.py", "value = 1")
    write(here / "net.py", "import installed\n" + network())
    sys.path.append(str(here / "venv"))
    try:
        make_own("net.py:make")
    finally:
        sys.path.remove(str(here / "venv"))
    assert sys.modules.pop("installed").value == 1


WRAPPED = """
import torch
from torch import nn


def plain():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))


def compiled():
    return torch.compile(plain(), backend="eager")


def parallel():
    return nn.DataParallel(plain())


def meta():
    with torch.device("meta"):
        return plain()


def lazy():
    return nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten(), nn.LazyLinear(3))
"""


@pytest.mark.parametrize("wrapper", ["compiled", "parallel"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_factory_may_wrap_its_network_and_weights_fit_all_the_same(
    tmp_path: Path, wrapper: str, prefix: str
) -> None:
    (tmp_path / "wrapped.py").write_text(WRAPPED)
    inside = load_model(f"{tmp_path / 'wrapped.py'}:plain").module.state_dict()
    torch.save({prefix + key: value for key, value in inside.items()}, tmp_path / "w.pt")
    found = load_model(f"{tmp_path / 'wrapped.py'}:{wrapper}", weights=tmp_path / "w.pt")
    assert found.unwrapped
    assert all(torch.equal(found.module.state_dict()[key], value) for key, value in inside.items())


@pytest.mark.parametrize(("factory", "reason"), [("meta", "without values"), ("lazy", "without a shape")])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_network_without_values_is_refused_before_anything_is_done_with_it(
    tmp_path: Path, factory: str, reason: str, weighted: bool
) -> None:
    (tmp_path / "wrapped.py").write_text(WRAPPED)
    plain = load_model(f"{tmp_path / 'wrapped.py'}:plain")
    torch.save(plain.module.state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=f"^the network has weights {reason}"):
        load_model(f"{tmp_path / 'wrapped.py'}:{factory}", weights=tmp_path / "w.pt" if weighted else None)


def test_an_attack_made_by_functools_is_known_by_the_users_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import functools\n\n\ndef attack():\n    pass\n\n\nmy = functools.partial(attack)\n")
    truth = hashlib.sha256(path.read_bytes()).hexdigest()
    assert source_sha256(f"{path}:my") == source_sha256(f"{path}:attack") == truth
    (tmp_path / "shown.py").write_text("from mine import my, attack\n")
    shown = [source_sha256(f"{tmp_path / 'shown.py'}:{name}") for name in ("my", "attack")]
    assert shown[0] == shown[1] != truth
    path.write_text(path.read_text() + "\n# edited\n")
    assert source_sha256(f"{tmp_path / 'shown.py'}:my") != shown[0]
    truth = source_sha256(f"{path}:my")
    sys.path.insert(0, str(tmp_path))
    try:
        assert source_sha256("mine:my") == truth
    finally:
        sys.path.remove(str(tmp_path))
