"""fragile-neurons models | layers"""

from __future__ import annotations

from rich.table import Table

from fragile_neurons.analysis.selection import probed_layers
from fragile_neurons.cli import options
from fragile_neurons.cli.console import console
from fragile_neurons.data.catalogue import load_data
from fragile_neurons.models.loading import MODELS, find_model, load_model
from fragile_neurons.report import sentences

FEW_IMAGES = 10


def models() -> None:
    """The bundled networks and what they reach on the test images.

    Example: fragile-neurons models
    """
    table = Table("name", "data", "parameters", "clean accuracy", "under attack")
    for model in MODELS.values():
        card = model.card()
        robust = "\n".join(
            f"{row['attack']}, {row['epsilon']}: {sentences.accuracy(row)}" for row in card["robust_accuracy"]
        )
        clean = sentences.accuracy(card["clean_accuracy"])
        table.add_row(model.name, model.data, f"{card['parameters']:,}", clean, robust)
    console.print(table)


def layers(
    model: options.Model = "mnist-cnn", weights: options.Weights = None, data: options.Data | None = None
) -> None:
    """The layers that a network executes, their neurons and sites: what --layer and --site can choose.

    Example: fragile-neurons layers --model mnist-cnn
    """
    images = load_data(data or find_model(model).data, limit=FEW_IMAGES)
    found, _ = probed_layers(load_model(model, weights=weights), images)
    table = Table("layer", "kind", "neurons", "map", "sites", "")
    for layer in found:
        table.add_row(
            layer.name,
            layer.kind,
            str(layer.channels),
            " x ".join(str(size) for size in layer.map_shape) or "a number",
            ", ".join(site.name for site in layer.sites),
            "yields the logits: never a target" if layer.is_output else "",
        )
    console.print(table)
