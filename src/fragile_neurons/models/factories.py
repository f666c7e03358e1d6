"""The user's own network: package.module:factory, or path/file.py:factory. That code is run."""

from __future__ import annotations

from torch import nn

from fragile_neurons.errors import InputError
from fragile_neurons.own import UnusableError, describe, opened


def make_own(name: str) -> nn.Module:
    """What the factory returns when it is called without arguments; raises InputError if it cannot be."""
    attribute = name.rpartition(":")[2]
    try:
        with opened(name) as factory:
            module = factory if isinstance(factory, nn.Module) else _call(factory, attribute)
    except UnusableError as error:
        raise _unusable(str(error), name) from error.__cause__
    if not isinstance(module, nn.Module):
        raise _unusable(f"{attribute}() returns a {type(module).__name__}, not a torch.nn.Module", name)
    return module


def _call(factory: object, attribute: str) -> object:
    try:
        return factory()  # type: ignore[operator]
    except (Exception, SystemExit) as error:
        raise UnusableError(f"{attribute}() failed: {describe(error)}") from error


def _unusable(problem: str, name: str) -> InputError:
    return InputError(
        problem,
        given=name,
        allowed="package.module:factory or path/file.py:factory, callable without arguments",
        fix="write a function without parameters that returns the network",
    )
