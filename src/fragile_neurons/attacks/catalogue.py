"""Attacks by name: the built-in ones, those of an extra, and the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fragile_neurons.attacks import autoattack
from fragile_neurons.attacks.apply import Attack
from fragile_neurons.attacks.fgsm import fgsm
from fragile_neurons.attacks.foreign import guarded
from fragile_neurons.attacks.noise import sign_noise, uniform_noise
from fragile_neurons.attacks.pgd import pgd, pgd_margin, pgd_strong
from fragile_neurons.errors import InputError, check_choice
from fragile_neurons.own import UnusableError, opened, source_sha256

ATTACKS: dict[str, Attack] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "pgd-margin": pgd_margin,
    "pgd-strong": pgd_strong,
    "sign-noise": sign_noise,
    "uniform-noise": uniform_noise,
    "autoattack": autoattack.autoattack,
    "square": autoattack.square,
}
DEFAULT_ATTACKS = ("fgsm", "pgd", "pgd-strong")  # of `evaluate`
OF_EXTRAS = ("autoattack", "square")


def find_attack(name: str) -> Attack:
    """The attack of this name, package.module:function or path/file.py:function.

    Raises InputError that lists all names, or that says what is wrong with the function.
    """
    if ":" not in name:
        check_choice("attack", name, [*ATTACKS, "package.module:function", "path/file.py:function"])
        return ATTACKS[name]
    with _explained(name), opened(name) as attack:
        if not callable(attack):
            raise UnusableError(f"{name.rpartition(':')[2]} is a {type(attack).__name__}, not a function")
        return guarded(attack)


def attack_sha256(name: str) -> str:
    """The checksum of the file of an attack of the user's own; raises InputError as find_attack."""
    with _explained(name):
        return source_sha256(name)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except UnusableError as error:
        raise InputError(
            str(error),
            given=name,
            allowed="a function (classifier, images, labels, epsilons, *, generator=None) that returns "
            "images (epsilons, n, channels, height, width)",
            fix="see the adapters in docs/attacks.md",
        ) from error.__cause__


def missing_extra(name: str) -> str | None:
    """How to install what an attack needs and is not there; None if it can run."""
    return autoattack.INSTALL if name in OF_EXTRAS and not autoattack.is_installed() else None
