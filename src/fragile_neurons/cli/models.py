"""fragile-neurons models | layers"""

from __future__ import annotations

from rich.table import Table

from fragile_neurons.analysis.selection import probed_layers
from fragile_neurons.classifier import Classifier
from fragile_neurons.cli import options
from fragile_neurons.cli.console import console
from fragile_neurons.data.catalogue import count_images, load_data
from fragile_neurons.models.loading import MODELS, RESNET20, build, default_data, load_model
from fragile_neurons.models.published import is_published
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
    model: options.Model = "mnist-cnn",
    weights: options.Weights = None,
    data: options.Data = None,
    split: options.Split = "test",
    resize: options.Resize = None,
) -> None:
    """The layers that a network executes, their neurons and sites: what --layer and --site can choose.

    Examples:
      fragile-neurons layers --model mnist-cnn

      fragile-neurons layers --model net.py:make --weights net.pt --data folder:photos
    """
    wanted = data or default_data(model)
    limit = min(FEW_IMAGES, count_images(wanted, split))
    images = load_data(wanted, split=split, limit=limit, resize=resize, skip_bad=wanted.startswith("folder:"))
    if weights is None and (is_published(model) or model == RESNET20):
        classifier = Classifier(build(model, images))  # its layers do not depend on its weights
    else:
        classifier = load_model(model, data=images, weights=weights)
    found, _ = probed_layers(classifier, images)
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
