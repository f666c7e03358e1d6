"""A network, weights and images that somebody brings: from the command line and from Python alike."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fragile_neurons as fn
from fragile_neurons.analysis.selection import probed_layers
from fragile_neurons.cli import app
from fragile_neurons.interventions import drop, intervening
from fragile_neurons.models.loading import build
from fragile_neurons.neurons import Layer

NETWORK = '''
"""A network as somebody might have it."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.body = nn.Conv2d(6, 8, 3, stride=2)
        self.head = nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = torch.relu(self.body(torch.relu(self.stem(images))))
        return {"logits": self.head(maps.mean((2, 3)))}


def make() -> nn.Module:
    return Net(3)
'''
CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.py, net.pt (of a network that tells red, green and blue apart) and a folder of PNGs."""
    folder = tmp_path_factory.mktemp("brought")
    (folder / "net.py").write_text(NETWORK)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 160, (60, 9, 9, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        label = number % 3
        image[:, :, 2 - label] += 60
        place = folder / "photos" / CLASSES[label] / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    torch.manual_seed(0)  # net.py draws its weights
    network = fn.load_model(f"{folder / 'net.py'}:make", mean=[0.5] * 3, std=[0.25] * 3)
    images, labels = fn.load_data(f"folder:{folder / 'photos'}")[:]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    state = {f"module.{key}": value for key, value in network.module.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 60}, folder / "net.pt")
    return folder


def test_the_command_analyses_a_network_in_a_file_and_a_folder_of_images_as_the_library_does(
    brought: Path,
) -> None:
    command = [sys.executable, "-c", "from fragile_neurons.cli import main; main()", "analyze"]
    command += ["--model", "net.py:make", "--weights", "net.pt", "--mean", "0.5,0.5,0.5", "--std"]
    command += ["0.25,0.25,0.25", "--data", "folder:photos", "--epsilons", "2/255,0.1", "--output", "run"]
    done = subprocess.run(command, cwd=brought, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "net.py:make on 60 test images" in " ".join(done.stdout.split())
    run = fn.open_run(brought / "run")
    assert run.summary["clean_accuracy"]["value"] > 0.9
    assert [layer["name"] for layer in run.summary["layers"]] == ["stem"]
    assert {check["status"] for check in run.summary["checks"]} == {"pass"}
    assert run.neurons.num_rows == 6 * 2

    data = fn.load_data(f"folder:{brought / 'photos'}")
    network = fn.load_model(
        f"{brought / 'net.py'}:make", weights=brought / "net.pt", mean=[0.5] * 3, std=[0.25] * 3
    )
    fn.analyze(network, data, epsilons=["2/255", "0.1"], output=brought / "library")
    for name in ("neurons.csv", "neurons.parquet", "targeting.parquet", "images.parquet"):
        assert (brought / "library" / name).read_bytes() == (brought / "run" / name).read_bytes()


def test_a_run_of_relative_paths_is_found_again_from_another_folder(
    brought: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = [sys.executable, "-c", "from fragile_neurons.cli import main; main()"]
    asked = ["--model", "net.py:make", "--weights", "net.pt", "--data", "folder:photos", "--neurons", "2"]
    once = [*main, "analyze", *asked, "--epsilons", "0.1", "--output", str(tmp_path / "once")]
    assert subprocess.run(once, cwd=brought, capture_output=True, check=False).returncode == 0
    again = [*main, "analyze", "--spec", str(tmp_path / "once" / "spec.toml"), "--output", "again"]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = [(tmp_path / folder / "neurons.csv").read_bytes() for folder in ("once", "again")]
    assert files[0] == files[1]


README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_three_lines_run_and_equal_its_command(
    brought: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("net.py", "net.pt", "photos"):
        (tmp_path / name).symlink_to(brought / name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(python|sh)\n(.*?)```", README.read_text(), re.DOTALL)
    (lines,) = (text for language, text in blocks if language == "python" and "net.py:make" in text)
    (command,) = (text for language, text in blocks if language == "sh" and "net.py:make" in text)
    assert len(lines.split("\n\n")[1].splitlines()) == 3
    made: dict[str, object] = {}
    exec(compile(lines, "README.md", "exec"), made)
    run = made["run"]
    assert isinstance(run, fn.Run)
    assert run.summary["clean_accuracy"]["value"] > 0.9
    assert app([*shlex.split(command)[1:], "--output", "again"], standalone_mode=False) in (None, 0)
    assert (Path("again") / "neurons.csv").read_bytes() == (run.folder / "neurons.csv").read_bytes()


ARCHITECTURES = (
    "resnet18",
    "resnet20",
    "resnet50",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "vgg11_bn",
    "mobilenet_v3_small",
    "densenet121",
    "vit_b_16",
)


def picked(layers: tuple[Layer, ...]) -> list[Layer]:
    """The first, the middle and the last convolution that is not the output."""
    convolutions = [one for one in layers if one.kind == "Conv2d" and not one.is_output]
    places = sorted({0, len(convolutions) // 2, len(convolutions) - 1})
    return [convolutions[place] for place in places]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_named_architecture_is_analysed_with_weights_from_a_file(name: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(30) % 10)
    data = fn.load_data(f"npz:{tmp_path / 'data.npz'}")
    torch.manual_seed(0)
    weights = tmp_path / "weights.pt"
    torch.save(build(name, data).state_dict(), weights)
    classifier = fn.load_model(name, data=data, weights=weights)
    chosen = picked(probed_layers(classifier, data)[0])
    for layer in chosen:
        command = ["analyze", "--model", name, "--weights", str(weights), "--limit", "10", "--neurons", "3"]
        command += ["--data", f"npz:{tmp_path / 'data.npz'}", "--epsilons", "2/255", "--layer", layer.name]
        assert app([*command, "--output", str(tmp_path / layer.name)], standalone_mode=False) in (None, 0)
        run = fn.open_run(tmp_path / layer.name)
        rows = run.neurons.to_pylist()
        assert len(rows) == 3
        assert {row["layer"] for row in rows} == {layer.name}
        few = fn.load_data(f"npz:{tmp_path / 'data.npz'}", limit=10)
        for row in rows:
            dropout_equals_zeroed_weights(classifier, few, layer, row["channel"], row["clean_drop"])


def dropout_equals_zeroed_weights(
    classifier: fn.Classifier, data: fn.ImageData, layer: Layer, channel: int, clean_drop: float
) -> None:
    images, labels = data[:]
    zeroed = deepcopy(classifier)
    module = zeroed.module.get_submodule(layer.name)
    assert isinstance(module, nn.Conv2d)
    with torch.no_grad():
        module.weight[channel] = 0
        if module.bias is not None:
            module.bias[channel] = 0
        whole, expected = classifier(images), zeroed(images)
        with intervening(classifier, layer.site("conv"), [channel], drop(0.0)):
            found = classifier(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))
    right, without = (logits.argmax(1) == labels for logits in (whole, expected))
    assert clean_drop == pytest.approx(float(right.float().mean() - without.float().mean()), abs=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("cifar10")
def test_the_bundled_cifar_network_is_analysed_on_real_images(tmp_path: Path) -> None:
    main = [sys.executable, "-c", "from fragile_neurons.cli import main; main()"]
    command = [*main, "analyze", "--model", "cifar10-resnet20", "--data", "cifar10", "--limit", "1000"]
    command += ["--epsilons", "1/255,2/255", "--output", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = fn.open_run(tmp_path / "run")
    assert run.summary["clean_accuracy"]["value"] > 0.88
    assert [layer["channels"] for layer in run.summary["layers"]] == [16]
    assert run.neurons.num_rows == 16 * 2
    assert {check["status"] for check in run.summary["checks"]} == {"pass"}
    robust = [row["value"] for row in run.summary["robust_accuracy"]]
    assert run.summary["clean_accuracy"]["value"] > robust[0] > robust[1]
