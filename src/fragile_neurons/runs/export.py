"""The files of a run folder, written from its results; each appears whole or not at all."""

from __future__ import annotations

import json
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv, parquet

from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.robustness import Attempts
from fragile_neurons.evidence import Arrays
from fragile_neurons.models.weights import save_weights
from fragile_neurons.runs.analyzed import Analysis
from fragile_neurons.runs.evaluated import Evaluation
from fragile_neurons.runs.hardened import Hardened
from fragile_neurons.runs.hardened_summary import hardening_summary
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.subject import Subject
from fragile_neurons.runs.summary import analysis_summary, evaluation_summary

TABLES = ("neurons", "targeting", "cumulative", "images")
EXAMPLES = "examples.npz"
HARDENED_FILES = ("gains.csv", "hardened.safetensors", "hardened.json", "judgement.parquet")
FILES = (
    "spec.toml",
    "summary.json",
    "neurons.csv",
    *(f"{name}.parquet" for name in TABLES),
    *HARDENED_FILES,
    EXAMPLES,
)
"""Every file that a run of any command may write here."""

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
        ("rescue_low", pa.float64()),
        ("rescue_high", pa.float64()),
        ("inject_low", pa.float64()),
        ("inject_high", pa.float64()),
        ("adv_sampling_se", pa.float64()),
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


def export_analysis(folder: Path, subject: Subject, results: Analysis) -> list[str]:
    """Write every file of `analyze` that is made from results alone; their names."""
    neurons = neurons_table(results)
    options = csv.WriteOptions(quoting_style="needed")
    write_file(folder / "neurons.csv", lambda path: csv.write_csv(neurons, path, options))
    tables = {
        "neurons": neurons,
        "targeting": results.targeting.groups_table(),
        "cumulative": results.cumulative.to_table(),
        "images": images_table(
            subject,
            results.predictions,
            {"fgsm": results.predictions},
            results.robust.epsilons,
            _smallest_of_grid(results),
        ),
    }
    return ["neurons.csv", *_export(folder, subject, analysis_summary(subject, results), tables)]


def export_evaluation(folder: Path, subject: Subject, found: Evaluation) -> list[str]:
    """Write every file of `evaluate` that is made from results alone; their names."""
    images = images_table(subject, found.predictions, found.attempts, found.worst.epsilons, found.smallest)
    return _export(folder, subject, evaluation_summary(subject, found), {"images": images})


def export_hardening(folder: Path, subject: Subject, found: Hardened) -> list[str]:
    """Write every file of `harden` that is made from results alone; their names."""
    summary = hardening_summary(subject, found)
    options = csv.WriteOptions(quoting_style="needed")
    table = found.gains.to_table()
    write_file(folder / "gains.csv", lambda path: csv.write_csv(table, path, options))
    write_file(folder / "hardened.safetensors", partial(save_weights, found.hardened))
    card = json.dumps(_card(summary, found), indent=2, allow_nan=False) + "\n"
    write_file(folder / "hardened.json", lambda path: path.write_text(card, encoding="utf-8"))
    return [
        *HARDENED_FILES[:-1],
        *_export(folder, subject, summary, {"judgement": found.judgement.to_table()}),
    ]


def export_examples(folder: Path, ledger: Ledger) -> list[str]:
    """Write what pictures are made of, as observe_examples describes it; its name, if the run has it."""
    stored = [ledger.result(unit) for unit in ledger.units() if unit.kind == "examples"]
    for arrays in stored:
        write_file(folder / EXAMPLES, partial(_save_arrays, arrays))
    return [EXAMPLES for _ in stored]


def _save_arrays(arrays: Arrays, path: Path) -> None:
    """As np.savez_compressed, but for the time of day in it: the same run leaves the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _card(summary: dict[str, Any], found: Hardened) -> dict[str, Any]:
    """What was done to the weights beside it, and the judgement on it."""
    judged = summary["hardening"]
    names = (
        "rule",
        "epsilon",
        "budget",
        "fitted_on",
        "chosen_on",
        "numbers",
        "parameters",
        "verdict",
        "reason",
    )
    return {
        "model": summary["model"],
        "data": summary["data"],
        "layers": [layer["name"] for layer in summary["layers"]],
        "site": summary["site"],
        **{name: judged[name] for name in (*names, "differences", "left_over")},
        "weights_sha256": found.hardened.sha256(),
        "environment": summary["environment"],
    }


def _export(
    folder: Path, subject: Subject, summary: dict[str, Any], tables: dict[str, pa.Table]
) -> list[str]:
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    write_file(folder / "spec.toml", lambda path: path.write_text(subject.spec.to_toml(), encoding="utf-8"))
    write_file(folder / "summary.json", lambda path: path.write_text(text, encoding="utf-8"))
    for name, table in tables.items():
        write_file(folder / f"{name}.parquet", partial(parquet.write_table, table))
    return ["spec.toml", "summary.json", *(f"{name}.parquet" for name in tables)]


def neurons_table(results: Analysis) -> pa.Table:
    """A row per neuron and epsilon; a column that nothing measured is empty."""
    parts = (results.dropout, results.targeting, results.patching)
    columns = {name: column for part in parts for name, column in _columns(part)}
    rows = len(columns["layer"])
    return pa.table(
        {
            field.name: columns[field.name].cast(field.type)
            if field.name in columns
            else pa.nulls(rows, field.type)
            for field in NEURONS
        }
    )


def images_table(
    subject: Subject,
    clean: Predictions,
    attacked: Mapping[str, Predictions | Attempts],
    epsilons: Sequence[Fraction],
    smallest: npt.NDArray[np.float64],
) -> pa.Table:
    """A row per attack, epsilon and image; per image once, without attack, where there is no epsilon."""
    n = len(subject.data)
    columns: dict[str, list[npt.NDArray[Any]]] = defaultdict(list)
    for attack, found in attacked.items():
        predictions, margins = _adversarial(found)
        for row, epsilon in enumerate(epsilons):
            columns["attack"].append(np.full(n, attack))
            columns["epsilon"].append(np.full(n, float(epsilon)))
            columns["adversarial_prediction"].append(predictions[row])
            columns["adversarial_margin"].append(margins[row])
    repeat = max(1, len(attacked) * len(epsilons))
    values = {name: np.concatenate(parts) for name, parts in columns.items()} | {
        "index": np.tile(subject.data.indices, repeat),
        "label": np.tile(clean.label, repeat),
        "clean_prediction": np.tile(clean.prediction, repeat),
        "clean_margin": np.tile(clean.margin, repeat),
        "smallest_fooling_epsilon": np.tile(smallest, repeat),
    }
    return pa.table(
        {
            field.name: pa.array(values[field.name], field.type, from_pandas=True)
            if field.name in values
            else pa.nulls(n, field.type)
            for field in IMAGES
        }
    )


def _adversarial(found: Predictions | Attempts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    if isinstance(found, Attempts):
        return found.prediction, found.margin
    return found.adv_prediction, found.adv_margin


def _smallest_of_grid(results: Analysis) -> npt.NDArray[np.float64]:
    """(n,) the smallest epsilon of the grid at which FGSM fools the network; nan if none does."""
    fooled = results.predictions.right & ~results.predictions.adv_right
    grid = np.array([float(epsilon) for epsilon in results.robust.epsilons])
    smallest: npt.NDArray[np.float64] = np.where(fooled, grid[:, None], np.inf).min(axis=0, initial=np.inf)
    return np.where(np.isfinite(smallest), smallest, np.nan)


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
