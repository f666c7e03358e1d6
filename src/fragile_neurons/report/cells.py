"""How a value of a dataset is printed: in percentage points, in percent, or with four digits."""

from __future__ import annotations

from typing import Any

POINTS = {
    *(f"{side}_{name}" for side in ("clean", "adv") for name in ("drop", "low", "high")),
    *("transfer_drop", "gap_drop", "clean_change", "robust_change", "difference"),
}
PERCENTS = {
    *("value", "low", "high", "share", "wins", "noise_share", "swap_share", "sampling_se"),
    *("fooled_share", "resisted_share"),
    *(f"{side}{end}" for side in ("rescue", "inject") for end in ("", "_low", "_high")),
}


def cell(value: Any, column: str) -> str:
    """A value of a dataset as it is printed."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if column in POINTS:
        return f"{100 * value:+.2f} pp"
    return f"{100 * value:.2f} %" if column in PERCENTS else f"{value:.4g}"
