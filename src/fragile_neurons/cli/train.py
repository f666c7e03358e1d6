"""fragile-neurons train"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fragile_neurons.classifier import parse_device
from fragile_neurons.cli import options
from fragile_neurons.cli.console import console, progress, say
from fragile_neurons.data.catalogue import find_dataset
from fragile_neurons.errors import InputError
from fragile_neurons.models.loading import MODELS, RESNET20
from fragile_neurons.models.published import is_published
from fragile_neurons.norms import parse_epsilon
from fragile_neurons.runs.spec import default_threads
from fragile_neurons.runs.subject import threads as with_threads
from fragile_neurons.training.recipes import make_schedule
from fragile_neurons.training.train import CARD, WEIGHTS, is_trained, train_model


def train(
    model: Annotated[
        str, typer.Option(help="A bundled network, resnet20, or a torchvision name such as resnet18:small.")
    ],
    data: Annotated[str, typer.Option(help="A data set by name; see `fragile-neurons data list`.")],
    adversarial: Annotated[
        str | None,
        typer.Option(metavar="EPS", help="Train on PGD images of this epsilon, e.g. 0.2 or 8/255."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Default: 8, or 30 where images are shifted and mirrored.")
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="AdamW or SGD. Default: AdamW, or SGD where images are shifted and mirrored."),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Its peak. Default: 0.003 of AdamW, 0.2 of SGD."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Default: trained/<model>.")] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Train a network; killed and started again, it goes on from its last epoch.

    Examples:
      fragile-neurons train --model mnist-cnn-robust --data mnist --adversarial 0.2

      fragile-neurons train --model squeezenet1_1 --data cifar10 --optimizer AdamW --learning-rate 0.001
    """
    folder = output or Path("trained") / model.replace(":", "-")
    if not (model in MODELS or model == RESNET20 or is_published(model)):
        raise InputError(
            "this network cannot be trained here",
            given=model,
            allowed=f"{', '.join(MODELS)}, {RESNET20}, a torchvision name such as resnet18:small, timm:NAME",
            fix="train a network of your own where it is written, and bring its weights",
        )
    schedule = make_schedule(
        find_dataset(data), epochs=epochs, optimizer=optimizer, learning_rate=learning_rate, seed=seed
    )
    epsilon = None if adversarial is None else parse_epsilon(adversarial)
    arguments = ["fragile-neurons", "train", "--model", model, "--data", data]
    arguments += ["--epochs", str(schedule.epochs), "--seed", str(seed)]
    arguments += [] if optimizer is None else ["--optimizer", optimizer]
    arguments += [] if learning_rate is None else ["--learning-rate", str(learning_rate)]
    arguments += [] if adversarial is None else ["--adversarial", adversarial]
    arguments += [] if threads is None else ["--threads", str(threads)]
    steps = train_model(
        model,
        data,
        output=folder,
        schedule=schedule,
        adversarial=epsilon,
        device=parse_device(device),
        command=shlex.join(arguments),
    )
    before, done = is_trained(folder), 0
    try:
        with (
            with_threads(threads or default_threads()),
            progress(f"training {model}", schedule.epochs) as advance,
        ):
            for step in steps:
                done = step.epoch - (step.step < step.steps)
                advance(done, f"epoch {step.epoch}, loss {step.loss:.4f}")
                if done == schedule.epochs:
                    say("trained; now attacking it on the test images, which takes minutes")
    except KeyboardInterrupt as stop:
        stop.add_note("whole epochs are kept: the same command goes on from the last one")
        raise
    if before and not done:
        say("it was trained before")
    console.print(f"weights: {folder / WEIGHTS}\ncard:    {folder / CARD}")
    console.print((folder / CARD).read_text())
