"""What was asked: a frozen description of a run, in TOML for people and hashed as canonical JSON."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fragile_neurons.analysis.dropout import Mode, Replace
from fragile_neurons.analysis.verdicts import RuleName
from fragile_neurons.classifier import DType
from fragile_neurons.errors import InputError, check_choice
from fragile_neurons.norms import format_epsilon, parse_epsilons
from fragile_neurons.sweeps.choice import SweepName
from fragile_neurons.sweeps.sampling import STANDARD_ERROR

STEPS, MINUTES = 200, 5.0  # of a fit of gains, which few numbers need no more of
MOST_THREADS = 8  # small networks gain nothing beyond


def default_threads() -> int:
    """The cores this process may use, up to eight; the environment has no say in it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_THREADS)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FoundLayer(_Frozen):
    """A chosen layer as the probe met it."""

    name: str
    kind: str
    channels: int
    neurons: int
    kernel: tuple[int, ...]


class Found(_Frozen):
    """What the probe found when the run was planned; the run is refused if it ever differs."""

    images: int
    excluded: tuple[str, ...] = ()
    data_sha256: str
    weights_sha256: str
    attacks_sha256: dict[str, str] = {}
    layers: tuple[FoundLayer, ...]
    sweep: str | None = None
    sweep_reason: str | None = None


class FoundToHarden(Found):
    """The same for `harden`; fitted_on, chosen_on: which images, in words; site: of all layers.

    fitted_on: None where nothing is fitted.
    """

    val_sha256: str
    train_sha256: str | None = None
    fitted_on: str | None = None
    chosen_on: str
    site: str


def canonical_sha256(options: object) -> str:
    """The sha256 of a spec as canonical JSON."""
    text = json.dumps(options, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Spec(_Frozen):
    """A run: the options of its command by their names, and what the probe found."""

    format_version: Literal[1] = 1
    command: str
    model: str
    weights: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    data: str
    split: str = "test"
    limit: int
    resize: str | None = None
    skip_bad: bool = False
    epsilons: tuple[str, ...]
    device: str = "cpu"
    dtype: DType = "float32"
    batch_size: int = Field(default=256, ge=4)
    threads: int = Field(default_factory=default_threads, ge=1)
    seed: int = Field(default=0, ge=0)
    found: Found | None = None

    @field_validator("epsilons")
    @classmethod
    def _one_text_per_budget(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(format_epsilon(epsilon) for epsilon in parse_epsilons(values))

    @property
    def digest(self) -> str:
        """The sha256 of the canonical JSON: the identity of the run."""
        return canonical_sha256(self.model_dump(mode="json"))

    @property
    def run_name(self) -> str:
        """The default name of the run's folder."""
        model, data = (re.split(r"[/\\:]", text)[-1][-40:] for text in (self.model, self.data))
        stem = f"{model}-{data}-{self.digest[:8]}"
        return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in stem)

    @property
    def shown_attack(self) -> str:
        """The attack that example images are made with."""
        return "fgsm"

    @property
    def attacked(self) -> tuple[Fraction, ...]:
        """The epsilons above 0, at which examples are made and conditions held."""
        return tuple(epsilon for epsilon in parse_epsilons(self.epsilons) if epsilon)

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def to_json(self) -> str:
        return self.model_dump_json()

    @staticmethod
    def from_json(text: str) -> Spec:
        """The Spec that was written as this text; raises ValueError or InputError."""
        return make_spec(**json.loads(text))


class AnalyzeSpec(Spec):
    """A run of `analyze`."""

    command: Literal["analyze"] = "analyze"
    layer: str = "first"
    neurons: str = "all"
    site: Literal["conv", "norm", "act"] = "conv"
    replace: Replace = "zero"
    mode: Mode = "adaptive"
    sweep: SweepName = "auto"
    standard_error: float = Field(default=STANDARD_ERROR, gt=0, lt=1)
    verdict_rule: RuleName = "tested"
    tolerance: float = Field(default=0.01, gt=0, lt=1)


class EvaluateSpec(Spec):
    """A run of `evaluate`; unavailable: attacks that could not run when it was planned."""

    command: Literal["evaluate"] = "evaluate"
    attacks: tuple[str, ...] = Field(min_length=1)
    unavailable: tuple[str, ...] = ()

    @property
    def shown_attack(self) -> str:
        """The last that could run."""
        return [attack for attack in self.attacks if attack not in self.unavailable][-1]

    @field_validator("epsilons")
    @classmethod
    def _at_least_one(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if not any(parse_epsilons(values)):
            raise ValueError("at least one epsilon above 0")
        return values

    @field_validator("attacks")
    @classmethod
    def _each_once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values):
            raise ValueError("each attack once")
        return values


class HardenSpec(Spec):
    """A run of `harden`; epsilon: what it is hardened against, epsilons: those of the curves besides.

    score, strength, keep_energy: of the proportional rule. steps: of the gains' fit, fewer if they would
    take more than `minutes`; weights are fitted for the same time.
    """

    command: Literal["harden"] = "harden"
    rule: Literal["proportional", "searched", "learned"] = "learned"
    layer: str = "all"
    site: Literal["auto", "conv", "norm"] = "auto"
    epsilon: str
    budget: float = Field(default=0.01, ge=0, lt=1)
    score: Literal["clean", "adv", "margin", "share", "excess", "rescue"] = "clean"
    strength: float = Field(default=0.5, gt=0, lt=1)
    keep_energy: bool = False
    tolerance: float = Field(default=0.01, gt=0, lt=1)
    steps: int = Field(default=STEPS, ge=1)
    minutes: float = Field(default=MINUTES, gt=0, allow_inf_nan=False)
    alternatives: bool = True
    found: FoundToHarden | None = None

    @property
    def shown_attack(self) -> str:
        return "pgd"

    @property
    def attacked(self) -> tuple[Fraction, ...]:
        """The one that it is hardened against."""
        return parse_epsilons([self.epsilon])

    @property
    def fits(self) -> bool:
        """Whether anything is fitted, gains or weights, so that images are needed for it."""
        return self.rule == "learned" or self.alternatives

    @field_validator("epsilon")
    @classmethod
    def _above_zero(cls, value: str) -> str:
        (epsilon,) = parse_epsilons([value])
        if not epsilon:
            raise ValueError("an epsilon above 0")
        return format_epsilon(epsilon)


_KINDS: dict[object, type[Spec]] = {"analyze": AnalyzeSpec, "evaluate": EvaluateSpec, "harden": HardenSpec}


def make_spec(**options: object) -> Spec:
    """A Spec of these options, by default of `analyze`; InputError for the first that is not allowed."""
    command = options.get("command", "analyze")
    check_choice("command of a spec", str(command), [str(kind) for kind in _KINDS])
    try:
        return _KINDS[command].model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"the option {name} is not usable",
            given=first["input"],
            allowed=first["msg"].removeprefix("Value error, "),
            fix=f"see: fragile-neurons {command} --help",
        ) from None


def read_options(path: Path) -> list[dict[str, object]]:
    """The options of each run in a TOML file: of one, as in a spec.toml, or of a list `[[runs]]`.

    What stands above a list holds for all its runs, but where one says otherwise.
    """
    try:
        shared = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            "the spec cannot be read",
            given=f"{path}: {error}",
            allowed="a spec.toml that a run has written, or a list [[runs]] of options",
            fix="check the path",
        ) from None
    runs = shared.pop("runs", [{}])
    if not isinstance(runs, list) or not runs or not all(isinstance(one, dict) for one in runs):
        raise InputError(
            "runs is not a list of runs",
            given=f"{runs!r:.100} in {path}",
            allowed="tables [[runs]], each with options by their names",
            fix='write [[runs]] above each, e.g. model = "mnist-cnn" below it',
        )
    return [{**shared, **one} for one in runs]
