"""The pictures of a run as PNG: images, perturbations, and sheets of kernels, maps and patches."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fragile_neurons.analysis.examples import STEPS

Array = npt.NDArray[Any]

MIDDLE = 128
BLUE, WHITE, ORANGE = (0, 90, 160), (247, 247, 247), (200, 80, 0)


def _diverging() -> list[int]:
    """A palette of 256 colours: blue below, white at 128, orange above."""
    colours: list[int] = []
    for place in range(256):
        part = min(abs(place - MIDDLE) / STEPS, 1.0)
        end = ORANGE if place > MIDDLE else BLUE
        colours += [round(white + part * (one - white)) for white, one in zip(WHITE, end, strict=True)]
    return colours


PALETTE = _diverging()


def png(picture: Image.Image) -> str:
    """A data URI."""
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def photo(pixels: Array) -> Image.Image:
    """(c, h, w) uint8: grey for one channel, colours for three, else the mean of all channels."""
    if len(pixels) == 3:
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return Image.fromarray(pixels.mean(axis=0).round().astype(np.uint8))


def signed(values: Array) -> Image.Image:
    """(c, h, w) in 127ths, int8: three channels as colours, grey at zero; else their mean, blue below zero,
    white at zero, orange above.
    """
    if len(values) == 3:
        return photo((values.astype(np.int16) + MIDDLE).astype(np.uint8))
    picture = Image.fromarray((values.mean(axis=0) + MIDDLE).round().astype(np.uint8)).convert("P")
    picture.putpalette(PALETTE)
    return picture


def sheet(pictures: Sequence[Sequence[Array]]) -> Array:
    """Pictures of one size, (..., h, w), in rows and columns: one large picture."""
    return np.concatenate([np.concatenate(row, axis=-1) for row in pictures], axis=-2)


def kernel_sheets(values: Array, scale: Array) -> dict[str, str]:
    """Kernels (channels, 1 or 3, h, w) in 127ths of their scale, side by side: `own` and `shared` scale."""
    shared = values * (scale / max(float(scale.max()), 1e-30)).reshape(-1, 1, 1, 1)
    both = {"own": values, "shared": shared.round().astype(np.int8)}
    return {name: png(signed(sheet([list(kernels)]))) for name, kernels in both.items()}


def map_sheet(maps: Array) -> str:
    """Maps (images, clean and adversarial, channels, h, w): a row per channel, two columns per image."""
    columns = maps.reshape(-1, *maps.shape[2:]).swapaxes(0, 1)[:, :, None]
    return png(signed(sheet([list(row) for row in columns])))


def patch_sheet(patches: Array) -> str:
    """Patches (channels, patches, c, h, w): a row per channel."""
    return png(photo(sheet([list(row) for row in patches])))


def pairs(
    examples: dict[str, Array], classes: Sequence[str], epsilons: Mapping[float, str]
) -> list[dict[str, Any]]:
    """What is shown of each image: three pictures, predictions, and by how much the change is magnified.

    epsilons: as they are written.
    """
    found = []
    for row in range(len(examples.get("images", ()))):
        clean, change = (examples[name][row] for name in ("images", "perturbation"))
        epsilon = float(examples["epsilon"][row])
        adversarial = np.clip(np.rint(clean + change * (255 * epsilon / STEPS)), 0, 255).astype(np.uint8)
        before, after = (_predictions(examples, side, row, classes) for side in ("clean", "adversarial"))
        label = examples["label"][row]
        found.append(
            {
                "index": int(examples["index"][row]),
                "label": classes[label],
                "epsilon": epsilons.get(epsilon, f"{epsilon:.3g}"),
                "magnified": 1 / (2 * epsilon),
                "clean": png(photo(clean)),
                "perturbation": png(signed(change)),
                "adversarial": png(photo(adversarial)),
                "before": before,
                "after": after,
                "outcome": _outcome(
                    label, *(examples[f"{side}_top"][row][0] for side in ("clean", "adversarial"))
                ),
            }
        )
    return found


def _predictions(
    examples: dict[str, Array], side: str, row: int, classes: Sequence[str]
) -> list[tuple[str, float]]:
    places, probabilities = examples[f"{side}_top"][row], examples[f"{side}_probability"][row]
    return [(classes[place], float(one)) for place, one in zip(places, probabilities, strict=True)]


def _outcome(label: int, before: int, after: int) -> str:
    if before != label:
        return "wrong clean"
    return "resisted" if after == label else "fooled"


def sheets(examples: dict[str, Array]) -> dict[str, dict[str, Any]]:
    """By layer: kernels (own, shared), the map sheet, the patch sheet, and how many of what there are."""
    found: dict[str, dict[str, Any]] = {}
    for name, array in examples.items():
        kind, _, layer = name.partition("/")
        if layer and kind in ("kernels", "maps", "patches"):
            here = found.setdefault(layer, {})
            here["channels"] = array.shape[2] if kind == "maps" else len(array)
            if kind == "kernels":
                here["kernels"] = kernel_sheets(array, examples[f"kernel_scale/{layer}"])
            elif kind == "maps":
                here["maps"] = {"sheet": map_sheet(array), "images": len(array)}
            else:
                here["patches"] = {"sheet": patch_sheet(array), "each": array.shape[1]}
    return found
