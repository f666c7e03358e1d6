"""fragile-neurons evaluate"""

from __future__ import annotations

from typing import Annotated

import typer

from fragile_neurons import own
from fragile_neurons.attacks.catalogue import ATTACKS, DEFAULT_ATTACKS
from fragile_neurons.cli import options, running, specs
from fragile_neurons.runs.spec import make_spec


def evaluate(
    context: typer.Context,
    attacks: Annotated[
        str,
        typer.Option(
            help=f"By commas: {', '.join(ATTACKS)} (the last two with the extra autoattack), or your own: "
            "package.module:function or path/file.py:function, see docs/attacks.md."
        ),
    ] = ",".join(DEFAULT_ATTACKS),
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
    """Is it really robust? Accuracy under each attack and in the worst case, with the checks beside it.

    Every image counts as robust only where no attack fools the network. The checks say where the
    attacks may be weaker than they could be. Stopped and started again, a run goes on where it was.

    Examples:
      fragile-neurons evaluate --limit 500

      fragile-neurons evaluate --model cifar10-resnet20 --data cifar10 --attacks fgsm,pgd,autoattack

      fragile-neurons evaluate --attacks fgsm,my_attacks.py:torchattacks_pgd --epsilons 0.1

      fragile-neurons evaluate --spec runs/x/spec.toml --output runs/again
    """
    if spec is None:
        names = [own.absolute(name) for name in options.split_commas(attacks)]
        asked = [make_spec(command="evaluate", attacks=names, **options.subject_options(context.params))]
    else:
        asked = specs.read_specs("evaluate", spec, context)
    running.run_specs(asked, output=output, force=force, engine=engine, address=address, workers=workers)
