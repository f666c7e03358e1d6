"""Random numbers that depend on what they are for, never on who draws them or when."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A seed below 2^63 for one purpose and one image (or batch, or split) of a run."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def numpy_generator(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """NumPy's random numbers of `derive_seed`."""
    return np.random.default_rng(derive_seed(seed, purpose, index))


def torch_generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """torch's, on the CPU whatever the network is on."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, index))
