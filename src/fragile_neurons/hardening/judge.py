"""Judging a change: the same images under the same attacks, before and after, beside its controls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from fragile_neurons.analysis.robustness import Accuracy
from fragile_neurons.analysis.selection import probed
from fragile_neurons.attacks.autoattack import is_installed
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import InputError
from fragile_neurons.folding import TOLERANCE, fold
from fragile_neurons.hardening.choose import SHRINKING, try_changes
from fragile_neurons.hardening.gains import Gains
from fragile_neurons.hardening.observe import APGD, CLEAN, FGSM, PGD, SHORT_PGD
from fragile_neurons.hardening.premises import refuse_overlap, refuse_ruined, refuse_unlike
from fragile_neurons.hardening.trials import (
    CONTROLS,
    HARDENED,
    ORIGINAL,
    SHUFFLED,
    TEMPERED,
    Trial,
    control,
    find_temperature,
    make_trials,
    run_trial,
    temper,
)
from fragile_neurons.hardening.verdict import BoolArray, Findings, Paired, Verdict, decide, left_over
from fragile_neurons.neurons import executed_layers
from fragile_neurons.norms import Epsilon, Epsilons, parse_epsilon, parse_epsilons


@dataclass(frozen=True, eq=False)
class Judgement:
    """Accuracies before and after, and what follows from them.

    right: (epsilons, images) for each trial. findings: those at `epsilon` that the verdict is made of.
    """

    epsilon: Fraction
    right: dict[Trial, BoolArray]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    findings: Findings
    verdict: Verdict
    reason: str

    def differences(self) -> list[tuple[str, Fraction, Paired]]:
        """Attack, epsilon and the images before and after, for each attack made anew on both networks."""
        found = []
        for trial, before in self.right.items():
            after = self.right.get(replace(trial, network=HARDENED))
            if trial.network == ORIGINAL and not trial.source and after is not None:
                for row, epsilon in enumerate(trial.epsilons):
                    found.append((trial.attack, epsilon, Paired(before[row], after[row])))
        return found

    def against(self) -> dict[str, Paired]:
        """By fitted network, under PGD at the epsilon: before is its own, after the hardened network's."""
        after = self.findings.pgd.after
        return {
            trial.network: Paired(right[trial.epsilons.index(self.epsilon)], after)
            for trial, right in self.right.items()
            if trial.attack == PGD and not trial.source and trial.network not in (ORIGINAL, HARDENED)
        }

    def left_over(self) -> dict[str, tuple[float, float, float]]:
        """By stronger attack: its gain minus 0.8 of that under PGD, and the interval."""
        return {name: left_over(pair, self.findings.pgd) for name, pair in self.findings.stronger.items()}

    def to_table(self) -> pa.Table:
        """Columns network, attack, source, epsilon, value, n, low, high; a row per trial and epsilon."""
        rows = []
        for trial, right in self.right.items():
            for row, epsilon in enumerate(trial.epsilons):
                found = Accuracy(int(right[row].sum()), right.shape[1])
                rows.append(
                    (
                        *(trial.network, trial.attack, trial.source or trial.network, float(epsilon)),
                        *(found.value, found.n, *found.ci95),
                    )
                )
        names = ["network", "attack", "source", "epsilon", "value", "n", "low", "high"]
        return pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))


def conclude(
    right: dict[Trial, BoolArray],
    labels: npt.NDArray[np.int64],
    classes: tuple[str, ...],
    epsilon: Fraction,
    budget: float,
) -> Judgement:
    """The verdict on what the trials found."""

    def at(network: str, attack: str, source: str = "") -> BoolArray | None:
        for trial, found in right.items():
            if (trial.network, trial.attack, trial.source) == (network, attack, source):
                row: BoolArray = found[0 if attack == CLEAN else trial.epsilons.index(epsilon)]
                return row
        return None

    def pair(attack: str) -> Paired:
        before, after = at(ORIGINAL, attack), at(HARDENED, attack)
        assert before is not None
        assert after is not None
        return Paired(before, after)

    pgd, matched = pair(PGD), at(HARDENED, PGD, TEMPERED)
    assert matched is not None
    stronger = {APGD: pair(APGD)} if at(HARDENED, APGD) is not None else {}
    stronger["PGD at matched temperature"] = Paired(pgd.before[: len(matched)], matched)
    shuffled = [found[0] for trial, found in right.items() if trial.network.startswith(SHUFFLED)]
    control = at(HARDENED, SHORT_PGD)
    findings = Findings(
        clean=pair(CLEAN),
        fgsm=pair(FGSM),
        pgd=pgd,
        stronger=stronger,
        control=np.zeros(0, np.bool_) if control is None else control,
        shuffled=np.stack(shuffled) if shuffled else None,
        budget=budget,
    )
    verdict, reason = decide(findings)
    return Judgement(epsilon, right, labels, classes, findings, verdict, reason)


def judge(
    original: Classifier,
    hardened: Classifier,
    *,
    val: ImageData,
    test: ImageData,
    epsilon: Epsilon,
    epsilons: Epsilons = (),
    gains: pa.Table | None = None,
    budget: float = 0.01,
    batch_size: int = 256,
    seed: int = 0,
) -> Judgement:
    """Does the hardened network hold what it promises? On test, attacked anew; any pair of networks.

    val: for the temperature, and the strength of the controls. gains: those the hardened network has, as
    Run.gains has them, for its controls. budget: what clean accuracy may fall by, a fraction. The result is
    in the order of test.mixed(seed), which only your own arrays are not in already. Raises InputError for
    networks that fail the fatal checks, images that overlap, an epsilon of 0 or gains that are not the
    hardened network's.
    """
    one, grid = parse_epsilon(epsilon), parse_epsilons(epsilons)
    _refuse_unusable(one, budget)
    refuse_unlike({"val": val}, test)
    refuse_overlap({"val": val, "test": test})
    val, test = val.mixed(seed), test.mixed(seed)
    for network in (original, hardened):
        probed(network, test)
    refuse_ruined(original, val, batch_size)
    held = None
    if gains is not None:
        images = test[:8][0].to(original.device)
        held = Gains.from_table(executed_layers(original, images), gains)
        _refuse_other_gains(original, hardened, held, images)
    networks = {ORIGINAL: original, HARDENED: hardened}
    temperature = find_temperature(original, hardened, val, batch_size=batch_size)
    networks[TEMPERED] = temper(hardened, temperature)
    controls = () if held is None or held.is_identity else CONTROLS
    for name in controls:
        assert held is not None
        other = control(name, held, seed)
        networks[name] = shrunk(original, other, val, budget=budget, batch_size=batch_size, seed=seed)
    right = {
        trial: run_trial(trial, networks, test, batch_size=batch_size, seed=seed)["right"]
        for trial in make_trials(len(test), one, grid, controls=controls, stronger=is_installed())
    }
    return conclude(right, test.labels, test.classes, one, budget)


def _refuse_unusable(epsilon: Fraction, budget: float) -> None:
    if not (epsilon and 0 <= budget < 1):
        raise InputError(
            "there is nothing to judge by",
            given=f"epsilon {float(epsilon):g}, budget {budget:g}",
            allowed="an epsilon above 0, and a budget from 0 to below 1",
            fix="e.g. epsilon=0.1, budget=0.01",
        )


def _refuse_other_gains(
    original: Classifier, hardened: Classifier, gains: Gains, images: torch.Tensor
) -> None:
    folded = fold(original, gains.changes, images)
    with torch.no_grad(), evaluating(folded), evaluating(hardened):
        expected, found = folded(images), hardened(images)
    if not torch.allclose(expected, found, rtol=0, atol=TOLERANCE * float(expected.abs().max())):
        raise InputError(
            "these are not the gains of the hardened network",
            given="other logits with the gains in the original's weights",
            allowed="the gains that made it",
            fix="leave gains out: the verdict then has no controls",
        )


def shrunk(
    original: Classifier, control: Gains, val: ImageData, *, budget: float, batch_size: int, seed: int
) -> Classifier:
    """The network with a control's gains, weak enough to keep the budget; the weakest if none does."""
    images = val[:8][0].to(original.device)
    changes = [partial(fold, original, control.power(strength).changes, images) for strength in SHRINKING]
    tried = try_changes(original, changes, val, None, budget=budget, batch_size=batch_size, seed=seed)
    return changes[tried.shrunk(budget)]()
