"""Specs in a file: one run once more, or a list of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from fragile_neurons import own
from fragile_neurons.attacks.catalogue import DEFAULT_ATTACKS
from fragile_neurons.cli import options
from fragile_neurons.data.catalogue import DEFAULT_LIMIT
from fragile_neurons.errors import InputError
from fragile_neurons.runs.spec import Spec, make_spec, read_options

OF_THE_RUN = ("spec", "output", "force", "engine", "address", "workers", "images")
STAND_INS: dict[str, object] = {
    **{"model": options.EMBEDDED_MODEL, "data": "mnist", "limit": DEFAULT_LIMIT, "epsilons": ["0.1"]},
}


def asked_for(context: typer.Context) -> set[str]:
    """The options on the command line, but for those of the run folder."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    return given - set(OF_THE_RUN)


def read_specs(command: str, path: Path, context: typer.Context) -> list[Spec]:
    """The specs in a file that is given alone."""
    if extra := sorted(asked_for(context)):
        raise InputError(
            "--spec stands alone",
            given=", ".join(f"--{name.replace('_', '-')}" for name in extra),
            allowed="--spec with --output and --force, and with --engine, --address and --workers",
            fix="leave the other options out, or edit a copy of the spec without its [found] table",
        )
    return specs_in(command, path)


def specs_in(command: str, path: Path) -> list[Spec]:
    """The specs in a file, all of this command; what they do not say is as without options."""
    specs = []
    for read in read_options(path):
        other = read.get("command", command)
        if other != command:
            raise InputError(
                "the spec is of another command",
                given=other,
                allowed=command,
                fix=f"fragile-neurons {other} --spec {path}",
            )
        said: dict[str, Any] = {"command": command, **read}
        if command == "evaluate":
            said.setdefault("attacks", list(DEFAULT_ATTACKS))
        stand_ins = STAND_INS | ({"epsilon": "0.1"} if command == "harden" else {})
        make_spec(**{**stand_ins, **said})  # refuses what is of a wrong type
        shared = options.subject_options(
            {name: said.get(name, value) for name, value in options.PLAIN.items()}
        )
        if command == "evaluate":
            said["attacks"] = [own.absolute(name) for name in options.split_commas(said["attacks"])]
        if command == "harden":
            said.setdefault("epsilon", options.middle(shared["epsilons"]))
        specs.append(make_spec(**{**said, **shared}))
    return specs
