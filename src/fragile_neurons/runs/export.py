"""The files of a run folder, written from its results; each appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from fragile_neurons.runs.execute import Subject
from fragile_neurons.runs.results import Results
from fragile_neurons.runs.summary import make_summary

FILES = (
    "spec.toml",
    "summary.json",
    "neurons.csv",
    "neurons.parquet",
    "targeting.parquet",
    "cumulative.parquet",
    "images.parquet",
)

NEURONS = pa.schema(
    [
        ("layer", pa.string()),
        ("channel", pa.int64()),
        ("site", pa.string()),
        ("mode", pa.string()),
        ("epsilon", pa.float64()),
        *(
            (f"{condition}_{name}", kind)
            for condition in ("clean", "adv")
            for name, kind in (
                ("drop", pa.float64()),
                ("low", pa.float64()),
                ("high", pa.float64()),
                ("lost", pa.int64()),
                ("gained", pa.int64()),
                ("q", pa.float64()),
                ("verdict", pa.string()),
            )
        ),
        *(
            (name, pa.float64())
            for name in (
                "transfer_drop", "gap_drop", "margin_drop", "adv_margin_drop", "disturbance", "relative",
                "share", "wins", "noise_share", "swap_share", "noise_excess", "excess", "rescue", "inject",
                "weight_norm", "activation_energy",
            )
        ),
        ("clean_small", pa.bool_()),
        ("adv_small", pa.bool_()),
        ("sampling_se", pa.float64()),
        ("clean_needed", pa.float64()),
        ("adv_needed", pa.float64()),
    ]
)  # fmt: skip
IMAGES = pa.schema(
    [
        ("index", pa.int64()),
        ("label", pa.int64()),
        ("attack", pa.string()),
        ("epsilon", pa.float64()),
        ("clean_prediction", pa.int64()),
        ("clean_margin", pa.float32()),
        ("adversarial_prediction", pa.int64()),
        ("adversarial_margin", pa.float32()),
        ("smallest_fooling_epsilon", pa.float64()),
    ]
)
CUMULATIVE = pa.schema(
    [
        ("layer", pa.string()),
        ("epsilon", pa.float64()),
        ("order", pa.string()),
        ("draw", pa.int64()),
        ("step", pa.int64()),
        ("accuracy", pa.float64()),
    ]
)


def export_files(folder: Path, subject: Subject, results: Results) -> None:
    """Write every file that is made from results alone."""
    neurons = neurons_table(results)
    summary = json.dumps(make_summary(subject, results), indent=2, allow_nan=False) + "\n"
    write_file(folder / "spec.toml", lambda path: path.write_text(subject.spec.to_toml(), encoding="utf-8"))
    write_file(folder / "summary.json", lambda path: path.write_text(summary, encoding="utf-8"))
    options = csv.WriteOptions(quoting_style="needed")
    write_file(folder / "neurons.csv", lambda path: csv.write_csv(neurons, path, options))
    tables = {
        "neurons": neurons,
        "targeting": results.targeting.groups_table(),
        "cumulative": CUMULATIVE.empty_table(),
        "images": images_table(subject, results),
    }
    for name, table in tables.items():
        write_file(folder / f"{name}.parquet", partial(parquet.write_table, table))


def neurons_table(results: Results) -> pa.Table:
    """A row per neuron and epsilon; a column that nothing measured is empty."""
    columns = {
        name: column for part in (results.dropout, results.targeting) for name, column in _columns(part)
    }
    rows = len(columns["layer"])
    return pa.table(
        {
            field.name: columns[field.name].cast(field.type)
            if field.name in columns
            else pa.nulls(rows, field.type)
            for field in NEURONS
        }
    )


def images_table(subject: Subject, results: Results) -> pa.Table:
    """A row per image and epsilon, with the smallest epsilon of the grid at which FGSM fools the network."""
    predictions, n = results.predictions, len(subject.data)
    grid = np.array([float(epsilon) for epsilon in results.robust.epsilons])
    fooled = predictions.right & ~predictions.adv_right
    smallest = np.where(fooled, grid[:, None], np.inf).min(axis=0, initial=np.inf)
    repeat = max(1, len(grid))
    columns = {
        "index": np.tile(subject.data.indices, repeat),
        "label": np.tile(predictions.label, repeat),
        "attack": np.full(repeat * n, "fgsm" if len(grid) else None),
        "epsilon": np.repeat(grid, n),
        "clean_prediction": np.tile(predictions.prediction, repeat),
        "clean_margin": np.tile(predictions.margin, repeat),
        "adversarial_prediction": predictions.adv_prediction.ravel(),
        "adversarial_margin": predictions.adv_margin.ravel(),
        "smallest_fooling_epsilon": np.tile(np.where(np.isfinite(smallest), smallest, np.nan), repeat),
    }
    return pa.table(
        {
            field.name: pa.array(columns[field.name], field.type, from_pandas=True)
            if len(columns[field.name])
            else pa.nulls(n, field.type)
            for field in IMAGES
        }
    )


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbour, then put it in place at once."""
    neighbour = path.with_name(f".{path.name}.partial")
    try:
        write(neighbour)
        os.replace(neighbour, path)
    finally:
        neighbour.unlink(missing_ok=True)


def _columns(part: Any) -> list[tuple[str, pa.ChunkedArray]]:
    table = part.to_table()
    return list(zip(table.column_names, table.columns, strict=True))
