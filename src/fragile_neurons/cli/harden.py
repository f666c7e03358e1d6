"""fragile-neurons harden"""

from __future__ import annotations

from typing import Annotated

import typer

from fragile_neurons.cli import options, running, specs
from fragile_neurons.runs.spec import MINUTES, STEPS, make_spec


def harden(
    context: typer.Context,
    rule: Annotated[
        str,
        typer.Option(
            help="learned (gains fitted to attacked images), proportional (the paper's proposal) or searched "
            "(the same by the score, strengths and sign that do best on val)."
        ),
    ] = "learned",
    epsilon: Annotated[
        str | None,
        typer.Option(metavar="E", help="What to harden against. Default: the middle of --epsilons."),
    ] = None,
    layer: Annotated[str, typer.Option(help="first, all (convolutions), or a pattern of names.")] = "all",
    budget: Annotated[str, typer.Option(help="What clean accuracy may fall by.")] = "1pp",
    steps: Annotated[int, typer.Option(help="Of the gains' fit, of 64 images each.")] = STEPS,
    minutes: Annotated[
        float, typer.Option(help="What a fit may take at most; it has fewer steps if they take longer.")
    ] = MINUTES,
    alternatives: Annotated[
        bool,
        typer.Option(help="Fit all weights, and the batch norms alone, for the same time, to compare."),
    ] = True,
    score: Annotated[
        str, typer.Option(help="Of the proportional rule: clean, adv, margin, share, excess or rescue.")
    ] = "clean",
    strength: Annotated[float, typer.Option(help="Of the proportional rule, above 0 and below 1.")] = 0.5,
    keep_energy: Annotated[
        bool, typer.Option("--keep-energy", help="Keep each layer's total activation energy.")
    ] = False,
    tolerance: Annotated[
        str, typer.Option(help="Of the proportional rule: a drop this large is not robust at all.")
    ] = "1pp",
    site: Annotated[
        str, typer.Option(help="conv, norm, or auto: norm where a batch norm follows every layer alone.")
    ] = "auto",
    model: options.Model = options.EMBEDDED_MODEL,
    weights: options.Weights = None,
    mean: options.Mean = None,
    std: options.Std = None,
    data: options.Data = None,
    split: options.Split = "test",
    limit: options.Limit = None,
    resize: options.Resize = None,
    skip_bad: options.SkipBad = False,
    epsilons: options.Epsilons = None,
    device: options.Device = "auto",
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
    """Can it be mended? Gains for its neurons, written into its weights, and judged on the test images.

    Fitted on the training images if they are there, else on one half of val; chosen on val; judged on test,
    attacked anew, beside the same gains on other neurons. It may well say that this does not help.
    hardened.safetensors loads into the network's own class. Stopped and started again, it goes on. A folder
    of images has PATH/test and PATH/val, and may have PATH/train.

    Examples:
      fragile-neurons harden --epsilon 0.1

      fragile-neurons harden --model cifar10-resnet20 --epsilon 2/255 --rule learned --layer all

      fragile-neurons harden --rule proportional --layer first --strength 0.5 --no-alternatives

      fragile-neurons harden --model net.py:make --weights net.pt --data folder:photos --epsilon 2/255

      fragile-neurons evaluate --weights runs/x/hardened.safetensors --attacks autoattack --epsilons 0.1
    """
    if spec is None:
        subject = options.subject_options(context.params)
        one = make_spec(
            command="harden",
            **subject,
            rule=rule,
            epsilon=options.middle(subject["epsilons"]) if epsilon is None else epsilon,
            layer=layer,
            site=site,
            budget=options.parse_points(budget),
            steps=steps,
            minutes=minutes,
            alternatives=alternatives,
            score=score,
            strength=strength,
            keep_energy=keep_energy,
            tolerance=options.parse_points(tolerance),
        )
        asked = [one]
    else:
        asked = specs.read_specs("harden", spec, context)
    running.run_specs(asked, output=output, force=force, engine=engine, address=address, workers=workers)
