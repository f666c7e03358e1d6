"""fragile-neurons analyze"""

from __future__ import annotations

from typing import Annotated

import typer

from fragile_neurons.cli import options, running, specs
from fragile_neurons.runs.spec import Spec, make_spec

EMBEDDED_EPSILONS = "0.1,0.2"


def analyze(
    context: typer.Context,
    model: options.Model = options.EMBEDDED_MODEL,
    weights: options.Weights = None,
    mean: options.Mean = None,
    std: options.Std = None,
    data: options.Data = None,
    split: options.Split = "test",
    limit: options.Limit = None,
    resize: options.Resize = None,
    skip_bad: options.SkipBad = False,
    layer: Annotated[str, typer.Option(help="first, all, or a pattern of names such as 'conv*'.")] = "first",
    neurons: Annotated[str, typer.Option(help="all, N of each layer, or conv1:3,conv1:17.")] = "all",
    site: Annotated[
        str,
        typer.Option(
            help="conv (the layer's own output), norm or act (after the normalisation or activation that "
            "follows). A batch norm makes a zero at conv a constant; at act nothing of the channel is left."
        ),
    ] = "conv",
    replace: Annotated[
        str,
        typer.Option(
            help="What a dropped channel becomes: zero, or mean, its average over the images, which takes "
            "what it tells and leaves its level."
        ),
    ] = "zero",
    epsilons: options.Epsilons = None,
    mode: Annotated[
        str,
        typer.Option(
            help="adaptive (each network is attacked anew) or transfer (faster; no verdicts under attack)."
        ),
    ] = "adaptive",
    sweep: Annotated[
        str,
        typer.Option(
            help="auto, exact (fast) or reference (any network, slow): the same numbers; sampled: estimates, "
            "faster from about 10,000 images on."
        ),
    ] = "auto",
    standard_error: Annotated[
        str,
        typer.Option(help="What a sampled sweep may err by for asking few images; less is slower."),
    ] = "0.1pp",
    verdict_rule: Annotated[
        str,
        typer.Option(
            help="tested: fragile if more images are lost than by chance. below-mean: if the accuracy "
            "without it is below the layer's mean, however little; some nearly always are."
        ),
    ] = "tested",
    tolerance: Annotated[
        str, typer.Option(help="With tested: a drop surely within it is robust. A share, e.g. 0.5pp.")
    ] = "1pp",
    device: options.Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16: faster where the processor has it, other numbers.")
    ] = "float32",
    batch_size: options.BatchSize = 256,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    engine: running.EngineName = "local",
    address: running.Address = None,
    workers: running.Workers = None,
    output: options.Output = None,
    force: options.Force = False,
    spec: options.SpecFile = None,
) -> None:
    """Which neurons are fragile, which does FGSM strike, and do the two correlate?

    Without options: the bundled MNIST network on 2,000 bundled test images, at epsilon 0.1 and 0.2, in a
    minute or two; with any, at the epsilons of the data.
    Stopped and started again, a run goes on where it was.

    Examples:
      fragile-neurons analyze

      fragile-neurons analyze --model mnist-cnn-robust --data mnist --epsilons 0.1,0.2

      fragile-neurons analyze --model net.py:make --weights net.pt --mean 0.5 --std 0.5 --data folder:photos

      fragile-neurons analyze --layer conv2 --site act --neurons 16 --limit 500

      fragile-neurons analyze --model cifar10-resnet20 --layer all --limit 10000 --sweep sampled

      fragile-neurons analyze --spec runs/x/spec.toml --output runs/again

      fragile-neurons analyze --spec several.toml --engine ray
    """
    asked = asked_specs(context)
    running.run_specs(asked, output=output, force=force, engine=engine, address=address, workers=workers)


def asked_specs(context: typer.Context) -> list[Spec]:
    """What the options of `analyze` ask for; several by a list in a file."""
    given = context.params
    if given["spec"] is not None:
        return specs.read_specs("analyze", given["spec"], context)
    if not specs.asked_for(context):
        given = given | {"epsilons": EMBEDDED_EPSILONS}
    names = ("layer", "neurons", "site", "replace", "mode", "sweep", "verdict_rule", "dtype")
    asked = make_spec(
        **options.subject_options(given),
        **{name: given[name] for name in names},
        standard_error=options.parse_points(given["standard_error"]),
        tolerance=options.parse_points(given["tolerance"]),
    )
    return [asked]
