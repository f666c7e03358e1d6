"""What the package raises when a user, a file or a machine is at fault."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar


class FragileNeuronsError(Exception):
    """The base of every error of this package; the message can be shown to a user as it is."""

    exit_code: ClassVar[int] = 2

    def __reduce__(self) -> tuple[Any, ...]:  # errors travel between processes as their message
        return type(self).__new__, (type(self), str(self))


class InputError(FragileNeuronsError):
    """Something given is not usable; says what, the value, what is allowed and what to do."""

    def __init__(self, problem: str, *, given: object, allowed: str, fix: str) -> None:
        super().__init__(f"{problem}\n  given:   {given}\n  allowed: {allowed}\n  fix:     {fix}")


class MissingSplitError(InputError):
    """A data set has no such split, or it is not on this machine."""


class IncompleteError(FragileNeuronsError):
    """A run has units left to compute."""

    exit_code = 3


class IntegrityError(FragileNeuronsError):
    """A file or a stored result is not what was written."""

    exit_code = 4


def check_choice(name: str, given: str, allowed: Iterable[str]) -> None:
    """Raise an InputError unless `given` is one of a few words."""
    if given not in allowed:
        raise InputError(
            f"there is no such {name}", given=given, allowed=", ".join(allowed), fix="choose one of them"
        )
