"""Does it help? The decision list that a hardened network is judged by, on numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from fragile_neurons.stats import tango

BoolArray = npt.NDArray[np.bool_]

Verdict = Literal[
    "changes nothing",
    "costs more than it brings",
    "vanishes under stronger attack",
    "no robust gain",
    "no better than shuffled gains",
    "holds",
]
ROUNDING = 1e-9  # of a difference of shares
LEFT_OVER = 0.8  # of the gain under PGD, to be left under a stronger attack


@dataclass(frozen=True, eq=False)
class Paired:
    """The same images before and after: right, (n,) each."""

    before: BoolArray
    after: BoolArray

    @property
    def gain(self) -> float:
        """Accuracy after minus before, a fraction."""
        return float(self.after.mean() - self.before.mean())

    @property
    def ci95(self) -> tuple[float, float]:
        """Tango's interval of the gain."""
        gained, lost = int((self.after & ~self.before).sum()), int((self.before & ~self.after).sum())
        return tango(gained, lost, len(self.before))

    @property
    def is_above(self) -> bool:
        """Whether the interval lies above 0."""
        return self.ci95[0] > 0

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies above or below 0."""
        low, high = self.ci95
        return low > 0 or high < 0

    def first(self, count: int) -> Paired:
        """The first images alone."""
        return Paired(self.before[:count], self.after[:count])


@dataclass(frozen=True, eq=False)
class Findings:
    """What a verdict is made of, at one epsilon.

    clean, fgsm, pgd: the report images. stronger: by attack, its first images, of which pgd has the same.
    control: (m,) right under the controls' attack after hardening; shuffled: (shuffles, m) the same with the
    gains on other channels, None where there are no gains. budget: of clean accuracy.
    """

    clean: Paired
    fgsm: Paired
    pgd: Paired
    stronger: dict[str, Paired]
    control: BoolArray
    shuffled: npt.NDArray[np.bool_] | None
    budget: float


def left_over(stronger: Paired, pgd: Paired) -> tuple[float, float, float]:
    """The gain under a stronger attack minus 0.8 of that under PGD, same images, and its 95 % interval.

    Of a mean over images, each with its own difference; Student's t.
    """
    here = pgd.first(len(stronger.before))
    gains = [pair.after.astype(np.float64) - pair.before for pair in (stronger, here)]
    difference = gains[0] - LEFT_OVER * gains[1]
    mean = float(difference.mean())
    if len(difference) < 2 or not difference.std():
        return mean, mean, mean
    low, high = stats.ttest_1samp(difference, 0.0).confidence_interval(0.95)
    return mean, float(low), float(high)


def decide(found: Findings) -> tuple[Verdict, str]:
    """The first verdict that applies, and why, in words; only a gain can vanish."""
    clean, pgd = found.clean.gain, found.pgd.gain
    if not any(pair.excludes_zero for pair in (found.clean, found.fgsm, found.pgd)):
        return "changes nothing", "no difference of accuracy is sure, clean, under FGSM or under PGD"
    if -clean > found.budget + ROUNDING:
        return "costs more than it brings", f"clean {_pp(clean)}, the budget is {_pp(-found.budget)}"
    if -clean > max(pgd, 0.0) + ROUNDING:
        return "costs more than it brings", f"clean {_pp(clean)}, under PGD {_pp(pgd)}"
    if found.fgsm.is_above and not found.pgd.is_above:
        return "vanishes under stronger attack", f"under FGSM {_pp(found.fgsm.gain)}, under PGD {_pp(pgd)}"
    for name, pair in found.stronger.items() if pgd > 0 else ():
        same = found.pgd.first(len(pair.before)).gain
        if same > 0 and left_over(pair, found.pgd)[2] < 0:
            return "vanishes under stronger attack", f"under PGD {_pp(same)}, under {name} {_pp(pair.gain)}"
    if not found.pgd.is_above:
        return "no robust gain", f"under PGD {_pp(pgd)}, not surely above 0"
    if found.shuffled is not None:
        reached = found.shuffled.mean(axis=1)
        good = int((reached >= found.control.mean()).sum())
        if good:
            return "no better than shuffled gains", f"{good} of {len(reached)} shuffles are as robust"
    unsure = [
        f"under {name} {_pp(pair.gain)}, not surely above 0"
        for name, pair in found.stronger.items()
        if not pair.is_above
    ]
    return "holds", ", ".join([f"under PGD {_pp(pgd)}", f"clean {_pp(clean)}", *unsure])


def _pp(fraction: float) -> str:
    return f"{100 * fraction:+.2f} pp"
