"""fragile-neurons analyze"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fragile_neurons import own
from fragile_neurons.classifier import parse_device
from fragile_neurons.cli import options
from fragile_neurons.cli.console import progress
from fragile_neurons.cli.findings import show_run
from fragile_neurons.data import catalogue
from fragile_neurons.data.catalogue import DEFAULT_LIMIT, count_images, default_epsilons
from fragile_neurons.errors import InputError
from fragile_neurons.models.loading import TORCHVISION, default_data
from fragile_neurons.norms import format_epsilon, parse_epsilons
from fragile_neurons.runs.spec import Spec, make_spec, read_spec
from fragile_neurons.workflows import analyze_spec

EMBEDDED = {"model": "mnist-cnn", "epsilons": "0.1,0.2"}
OF_THE_RUN = ("spec", "output", "force")


def analyze(
    context: typer.Context,
    model: options.Model = EMBEDDED["model"],
    weights: options.Weights = None,
    mean: options.Mean = None,
    std: options.Std = None,
    data: Annotated[str | None, options.Data.__metadata__[0]] = None,
    split: options.Split = "test",
    limit: Annotated[
        int | None,
        typer.Option(help=f"Images, a stratified sample. Default: {DEFAULT_LIMIT:,} or all there are."),
    ] = None,
    resize: options.Resize = None,
    skip_bad: options.SkipBad = False,
    layer: Annotated[str, typer.Option(help="first, all, or a pattern of names such as 'conv*'.")] = "first",
    neurons: Annotated[str, typer.Option(help="all, N of each layer, or conv1:3,conv1:17.")] = "all",
    site: Annotated[str, typer.Option(help="conv (the layer's output), norm or act.")] = "conv",
    replace: Annotated[str, typer.Option(help="What a dropped channel becomes: zero or mean.")] = "zero",
    epsilons: Annotated[
        str | None,
        typer.Option(
            help="L-infinity budgets in pixels of [0, 1], by commas, e.g. 1/255,0.1; '' for clean only."
        ),
    ] = None,
    mode: Annotated[str, typer.Option(help="adaptive (attack each network anew) or transfer.")] = "adaptive",
    verdict_rule: Annotated[str, typer.Option(help="tested or below-mean.")] = "tested",
    tolerance: Annotated[str, typer.Option(help="A drop surely within it is robust.")] = "1pp",
    device: options.Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Images at once.")] = 256,
    seed: options.Seed = 0,
    output: Annotated[
        Path | None, typer.Option(help="The run folder. Default: runs/<model>-<data>-<hash>.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another run in the folder.")] = False,
    spec: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Repeat the run of this spec.toml.")
    ] = None,
) -> None:
    """Which neurons are fragile, which does FGSM strike, and do the two correlate?

    Without options: the bundled MNIST network on 2,000 bundled test images, in a minute or two.
    Stopped and started again, a run goes on where it was.

    Examples:
      fragile-neurons analyze

      fragile-neurons analyze --model mnist-cnn-robust --data mnist --epsilons 0.1,0.2

      fragile-neurons analyze --model net.py:make --weights net.pt --mean 0.5 --std 0.5 --data folder:photos

      fragile-neurons analyze --layer conv2 --site act --neurons 16 --limit 500

      fragile-neurons analyze --spec runs/x/spec.toml --output runs/again
    """
    given = {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
    if spec is None:
        asked = _spec(context.params, nothing_asked=not given.keys() - set(OF_THE_RUN))
    elif extra := sorted(given.keys() - set(OF_THE_RUN)):
        raise InputError(
            "--spec stands alone",
            given=", ".join(f"--{name.replace('_', '-')}" for name in extra),
            allowed="--spec with --output and --force",
            fix="leave the other options out, or edit a copy of the spec without its [found] table",
        )
    else:
        asked = read_spec(spec)
    show_run(analyze_spec(asked, output=output, force=force, progress=progress))


def _spec(given: dict[str, object], *, nothing_asked: bool) -> Spec:
    model, weights, epsilons = str(given["model"]), given["weights"], given["epsilons"]
    data = str(given["data"] or default_data(model))
    if epsilons is None:
        epsilons = EMBEDDED["epsilons"] if nothing_asked else ",".join(default_epsilons(data))
    taken = {name: value for name, value in given.items() if name not in OF_THE_RUN}
    limit = given["limit"]
    return make_spec(
        **taken
        | {
            # paths are made absolute: a run is found again from any folder
            "model": own.absolute(model),
            "weights": weights
            if weights in (None, TORCHVISION)
            else str(Path(os.path.expanduser(str(weights))).absolute()),
            "data": catalogue.absolute(data),
            "limit": min(DEFAULT_LIMIT, count_images(data, str(given["split"]))) if limit is None else limit,
            "mean": options.parse_numbers("mean", given["mean"]),
            "std": options.parse_numbers("std", given["std"]),
            "epsilons": [format_epsilon(one) for one in parse_epsilons(options.split_commas(str(epsilons)))],
            "tolerance": options.parse_points(str(given["tolerance"])),
            "device": str(parse_device(str(given["device"]))),
        }
    )
