"""What each channel is multiplied by, and the rule that takes it from how fragile the neurons are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from fragile_neurons.errors import InputError
from fragile_neurons.folding import Changes
from fragile_neurons.neurons import Layer, Site
from fragile_neurons.seeds import numpy_generator

SMALLEST, LARGEST = 1e-3, 1e3

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gains:
    """Factors and shifts of the channels at some sites: factor times the map, plus shift.

    factors, shifts: an array (channels,) for each site; shifts are 0 where no weight can hold them.
    Raises InputError for a factor outside 0.001 to 1,000, or a shift that is not finite.
    """

    sites: tuple[Site, ...]
    factors: tuple[FloatArray, ...]
    shifts: tuple[FloatArray, ...]

    def __post_init__(self) -> None:
        for site, factors, shifts in zip(self.sites, self.factors, self.shifts, strict=True):
            bad = ~((factors >= SMALLEST) & (factors <= LARGEST) & np.isfinite(shifts))
            if bad.any():
                channel = int(np.flatnonzero(bad)[0])
                raise InputError(
                    f"the gain of {site.layer}:{channel} is not usable",
                    given=f"factor {factors[channel]:g}, shift {shifts[channel]:g}",
                    allowed=f"factors from {SMALLEST:g} to {LARGEST:g}, finite shifts",
                    fix="give gains near 1; to remove a neuron, drop it (see dropout)",
                )

    @classmethod
    def of_factors(cls, sites: Sequence[Site], factors: Sequence[FloatArray]) -> Gains:
        """Gains without shifts."""
        return cls(tuple(sites), tuple(factors), tuple(np.zeros_like(one) for one in factors))

    @property
    def changes(self) -> Changes:
        """For scaling and folding."""
        columns = zip(self.sites, self.factors, self.shifts, strict=True)
        return {site: (torch.from_numpy(one), torch.from_numpy(two)) for site, one, two in columns}

    @property
    def is_identity(self) -> bool:
        """Whether they change nothing."""
        return all((one == 1).all() for one in self.factors) and not any(one.any() for one in self.shifts)

    @property
    def numbers(self) -> int:
        """How many numbers they are, shifts counted where there are any."""
        return sum(
            len(one) * (2 if two.any() else 1) for one, two in zip(self.factors, self.shifts, strict=True)
        )

    def power(self, strength: float) -> Gains:
        """The same gains, stronger or weaker: factor^strength, shift * strength; 0 is the identity."""
        return Gains(
            self.sites,
            tuple(one**strength for one in self.factors),
            tuple(strength * one for one in self.shifts),
        )

    def shuffled(self, seed: int, draw: int) -> Gains:
        """The same gains on other channels of the same layer, factor and shift together."""
        orders = [
            numpy_generator(seed, f"shuffled gains of {site.layer}", draw).permutation(len(one))
            for site, one in zip(self.sites, self.factors, strict=True)
        ]
        return Gains(
            self.sites,
            tuple(one[order] for one, order in zip(self.factors, orders, strict=True)),
            tuple(one[order] for one, order in zip(self.shifts, orders, strict=True)),
        )

    def uniform(self) -> Gains:
        """In each layer the geometric mean of the factors and the mean of the shifts, for every channel."""
        return Gains(
            self.sites,
            tuple(np.full_like(one, np.exp(np.log(one).mean())) for one in self.factors),
            tuple(np.full_like(one, one.mean()) for one in self.shifts),
        )

    def to_table(self) -> pa.Table:
        """A row per channel: layer, channel, site, gain (a factor), shift (added after it)."""
        sizes = [len(factors) for factors in self.factors]
        return pa.table(
            {
                "layer": np.repeat([site.layer for site in self.sites], sizes),
                "channel": np.concatenate([np.arange(size) for size in sizes]),
                "site": np.repeat([site.name for site in self.sites], sizes),
                "gain": np.concatenate(self.factors),
                "shift": np.concatenate(self.shifts),
            }
        )

    @classmethod
    def from_table(cls, layers: Sequence[Layer], table: pa.Table) -> Gains:
        """The gains that to_table wrote; layers: those of the network.

        Raises InputError for rows that are not those of all channels of some of these layers.
        """
        rows = table.to_pylist()
        try:
            found = {(row["layer"], row["channel"]): (row["gain"], row["shift"]) for row in rows}
            chosen = {row["layer"]: row["site"] for row in rows}
            of_layers = [layer for layer in layers if layer.name in chosen]
            sites = [layer.site(chosen[layer.name]) for layer in of_layers]
            numbers = [
                np.array([found.pop((layer.name, channel)) for channel in range(layer.channels)])
                for layer in of_layers
            ]
        except KeyError as error:
            raise _unlike_gains(f"no {error.args[0]}") from None
        if found:
            raise _unlike_gains("rows of {}:{}".format(*next(iter(found))))
        factors, shifts = ([column[:, side] for column in numbers] for side in (0, 1))
        return cls(tuple(sites), tuple(factors), tuple(shifts))

    def to_arrays(self) -> dict[str, npt.NDArray[np.float64]]:
        """Arrays by name, that from_arrays reads."""
        columns = {"factors": self.factors, "shifts": self.shifts}
        return {
            f"{site.layer}/{name}": one
            for name, column in columns.items()
            for site, one in zip(self.sites, column, strict=True)
        }

    @classmethod
    def from_arrays(cls, sites: Sequence[Site], arrays: Mapping[str, npt.NDArray[np.float64]]) -> Gains:
        """The gains that to_arrays wrote."""
        return cls(
            tuple(sites),
            tuple(arrays[f"{site.layer}/factors"] for site in sites),
            tuple(arrays[f"{site.layer}/shifts"] for site in sites),
        )


def _unlike_gains(given: str) -> InputError:
    return InputError(
        "these are not the gains of this network",
        given=given,
        allowed="layer, channel, site, gain and shift of all channels of some of its layers",
        fix="give Run.gains of its `harden`",
    )


@dataclass(frozen=True)
class Strength:
    """How much the fragile are amplified and the robust compressed, 0 to below 1 each; sign -1: reversed."""

    amplify: float
    compress: float
    sign: int = 1


def proportional(scores: FloatArray, strength: Strength, *, tolerance: float | None = None) -> FloatArray:
    """A layer's factors (channels,) from its scores, the fragile amplified and the robust compressed.

    Our reading of the paper's proposal: f = max(score, 0) over its maximum, r = 1 - |score| / tolerance
    clipped to [0, 1] (tolerance: that of a drop; else the largest |score|); 1 + amplify f where f > r, else
    1 - compress r. A score that is empty (nan) gives 1.
    """
    size = np.abs(scores)
    largest, most = np.nanmax(np.append(scores, 0.0)), np.nanmax(np.append(size, 0.0))
    fragile = np.maximum(scores, 0.0) / largest if largest > 0 else np.zeros_like(scores)
    scale = tolerance or most
    robust = np.clip(1 - size / scale, 0.0, 1.0) if scale > 0 else np.ones_like(scores)
    change = np.where(fragile > robust, strength.amplify * fragile, -strength.compress * robust)
    return np.asarray(np.where(np.isnan(scores), 1.0, 1 + strength.sign * change))


def keep_energy(factors: FloatArray, energy: FloatArray) -> FloatArray:
    """The same proportions with the layer's total activation energy as before; energy: (channels,)."""
    after = float((factors**2 * energy).sum())
    return factors * np.sqrt(energy.sum() / after) if after > 0 else factors
