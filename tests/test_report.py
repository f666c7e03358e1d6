"""Sentences from numbers, and Markdown that shows hostile names as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pyarrow import parquet

from fragile_neurons import Run
from fragile_neurons.report import sentences
from fragile_neurons.report.tables import escape, last_epsilon, markdown, table, top_neurons, write_markdown

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "a|b",
    "a\\|b",
    "trailing\\",
    "*bold* _it_ `code` ~~gone~~",
    "[text](http://example.org)",
    "![image](x.png)",
    "<http://example.org>",
    "&lt;b&gt; &copy; &#65;",
    "100 % & $x$",
    "#1",
    "layer1.0.conv_1",
]


def parsed(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def shown(token: Token) -> str:
    """What a reader sees of an inline token; fails if it is anything but text."""
    children = token.children or []
    assert {child.type for child in children} <= {"text", "text_special"}, children
    return "".join(child.content for child in children)


def cells(text: str) -> list[str]:
    return [shown(token) for token in parsed(text) if token.type == "inline"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_shown_as_it_is(text: str) -> None:
    (inline,) = cells(escape(text))
    assert inline == text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_cell_stays_one_cell(text: str) -> None:
    written = table(["name", "value"], [[text, "1"], ["last", text]])
    assert cells(written) == ["name", "value", text, "1", "last", text]


@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n", "\u2028"])
def test_a_name_of_several_lines_does_not_break_a_table(line_end: str) -> None:
    written = table(["name"], [[f"one{line_end}| --- |{line_end}two"]])
    assert cells(written) == ["name", "one | --- | two"]


def test_an_accuracy_comes_with_its_interval() -> None:
    assert (
        sentences.accuracy({"value": 0.991, "n": 2000, "ci95": [0.98581, 0.99434]}) == "99.1 % [98.6, 99.4]"
    )


@pytest.mark.parametrize(
    ("value", "points", "number"),
    [(0.0125, "+1.25", "+0.01"), (-0.5, "-50.00", "-0.50"), (0.0, "+0.00", "+0.00"), (None, "–", "–")],
)
def test_a_difference_is_signed_and_a_missing_one_is_a_dash(
    value: float | None, points: str, number: str
) -> None:
    assert sentences.points(value) == points
    assert sentences.number(value) == number


def verdicts(**changes: Any) -> dict[str, Any]:
    counts = {"fragile": 3, "robust": 0, "undecided": 9}
    row = {"epsilon": "0.1", "verdicts": counts, "small": 0, "right": 60, "wrong": 40}
    return row | {"largest_sampling_se": None} | changes


def test_verdicts_are_counted_without_the_absent_ones() -> None:
    assert sentences.verdicts(verdicts()) == "3 fragile, 9 undecided"
    assert sentences.verdicts(verdicts(small=2)) == "3 fragile, 9 undecided; 2 significant but small"


@pytest.mark.parametrize(("right", "wrong"), [(29, 71), (71, 29), (0, 100)])
def test_too_few_images_at_an_attacked_baseline_are_named(right: int, wrong: int) -> None:
    few, which = min((right, "right"), (wrong, "wrong"))
    sentence = sentences.verdicts(verdicts(right=right, wrong=wrong))
    assert sentence.endswith(f"9 undecided; only {few} images {which} at baseline, a verdict needs 30")
    assert sentences.verdicts(verdicts(epsilon=None, right=right, wrong=wrong)) == "3 fragile, 9 undecided"
    assert sentences.verdicts(verdicts(right=30, wrong=30)) == "3 fragile, 9 undecided"


def test_a_condition_is_clean_or_an_epsilon() -> None:
    assert sentences.condition({"epsilon": None}) == "clean"
    assert sentences.condition({"epsilon": "8/255"}) == "FGSM 8/255"


def pair(**changes: Any) -> dict[str, Any]:
    return {
        "x": "clean_drop",
        "y": "share",
        "layer": "conv1",
        "epsilon": "0.1",
        "n": 32,
        "spearman": 0.514,
        "p": 0.004,
        "adjusted_p": 0.0161,
        "ci95": [0.21, 0.74],
        "partial_spearman": 0.3,
        "partial_p": 0.09,
        "reliability_x": 0.9,
        "reliability_y": 0.8,
    } | changes


def test_a_headline_says_rho_interval_p_n_and_what_it_means() -> None:
    assert sentences.headline(pair()) == (
        "FGSM 0.1, conv1, clean drop with share: "
        "Spearman +0.51 [+0.21, +0.74], p 0.016 (Holm), n = 32 neurons: "
        "neurons that lose more images are disturbed more (size not controlled)."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"spearman": 0.5, "adjusted_p": 0.05},
            "neurons that lose more images are disturbed more (size not controlled)",
        ),
        (
            {"spearman": -0.5, "adjusted_p": 0.01},
            "neurons that lose more images are disturbed less (size not controlled)",
        ),
        ({"spearman": 0.5, "adjusted_p": 0.0501}, "not shown for neurons in general"),
        ({"y": "excess", "spearman": -0.5, "adjusted_p": 0.9}, "not shown for neurons in general"),
        (
            {"adjusted_p": 0.25, "reliability_x": 0.17},
            "too noisy on these images to say, reliability 0.17 and 0.80 where 0.3 is the least",
        ),
        (
            {"adjusted_p": 0.9, "reliability_y": None},
            "too noisy on these images to say, reliability 0.90 and none where 0.3 is the least",
        ),
        ({"y": "excess", "partial_p": 0.05}, "the attack aims at the neurons that cost the most margin"),
        (
            {"y": "excess", "spearman": -0.5, "partial_p": 0.01},
            "the attack avoids the neurons that cost the most margin",
        ),
        (
            {"y": "excess", "partial_p": 0.06},
            "the attack aims at the neurons that cost the most margin, "
            "not shown beyond weight norm and activation energy",
        ),
    ],
)
def test_a_claim_needs_the_adjusted_p_its_control_and_follows_the_sign(
    changes: dict[str, Any], said: str
) -> None:
    sentence = sentences.headline(pair(p=1e-4) | changes)
    assert f"neurons: {said}." in sentence


def test_an_undefined_correlation_is_said_to_be_undefined() -> None:
    nothing = pair(
        spearman=None, p=None, adjusted_p=None, ci95=[None, None], partial_spearman=None, partial_p=None, n=3
    )
    for aim in ("share", "excess"):
        sentence = sentences.headline(nothing | {"y": aim})
        assert sentence.endswith("undefined, 3 neurons have both; too few images, or a measure is constant.")
        assert "None" not in sentence
        assert "nan" not in sentence


def test_a_missing_interval_is_left_out() -> None:
    sentence = sentences.headline(pair(ci95=[None, None]))
    assert "Spearman +0.51, p 0.016" in sentence
    assert "[" not in sentence


def test_the_controlled_headline_adds_its_partial_where_there_is_one() -> None:
    assert sentences.headline(pair(y="excess")).endswith(
        " Given weight norm and activation energy: +0.30, p 0.09, not adjusted."
    )
    without = sentences.headline(pair(y="excess", partial_spearman=None, partial_p=None))
    assert without.endswith("cost the most margin, not shown beyond weight norm and activation energy.")


NEURON = {
    "layer": "conv1",
    "clean_drop": 0.01,
    "clean_low": -0.01,
    "clean_high": 0.03,
    "clean_verdict": "undecided",
    "adv_drop": 0.02,
    "adv_low": 0.0,
    "adv_high": 0.04,
    "adv_verdict": None,
    "excess": 0.5,
    "wins": 0.25,
    "rescue": 0.125,
    "inject": None,
}


def made_up_run(folder: Path, name: str = "a model", *, epsilons: list[float] | None = None) -> Run:
    """A run folder with twelve neurons whose margin drop and share grow with the channel."""
    grid: list[float | None] = [0.1, 0.2] if epsilons is None else [*epsilons] or [None]
    rows = [
        NEURON
        | {
            "channel": channel,
            "epsilon": epsilon,
            "margin_drop": None if channel == 11 else channel / 10,
            "share": None if epsilon is None else channel / 100 + epsilon,
        }
        | (dict.fromkeys(("adv_drop", "adv_low", "adv_high")) if epsilon is None else {})
        for channel in range(12)
        for epsilon in grid
    ]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "neurons.parquet")
    budgets = [str(epsilon) for epsilon in grid if epsilon is not None]
    carrier = {"channel": 7, "rescue": 0.25, "ci95": [0.21, 0.29]}
    summary = {
        "model": {"name": name},
        "data": {"name": "mnist", "split": "test", "n": 1200},
        "layers": [{"name": "conv1", "neurons": 12}],
        "site": "conv",
        "spec": {
            "command": "analyze",
            "dtype": "float32",
            "epsilons": budgets,
            "found": {"sweep": "reference", "sweep_reason": "no graph|of <this>"},
        },
        "patching": [
            {"layer": "conv1", "epsilon": budget, "fooled": 1234, "right": 5000, "most_rescuing": carrier}
            for budget in budgets
        ],
        "cumulative": [
            {
                "layer": "conv1",
                "epsilon": epsilon,
                "step": step,
                "fragility": {"value": 0.8 / step, "n": 512, "ci95": [0.7 / step, 0.9 / step]},
                "targeting": {"value": 0.9 / step, "n": 512, "ci95": [0.8 / step, 0.95 / step]},
                "random": {"value": 0.96 / step, "draws": 20, "lowest": 0.9 / step, "highest": 1 / step},
            }
            for epsilon in (None, *budgets)
            for step in (1, 2)
        ],
        "clean_accuracy": {"value": 1.0, "ci95": [0.9, 1.0]},
        "robust_accuracy": [
            {"attack": "fgsm", "epsilon": budget, "value": 0.5, "ci95": [0.4, 0.6]} for budget in budgets
        ],
        "dropout": [{"layer": "conv1", **verdicts(epsilon=None)}],
        "correlation": [
            {**pair(epsilon=budget), "headline": headline} for budget in budgets for headline in (True, False)
        ],
        "checks": [
            {
                "name": name,
                "status": "pass",
                "value": 0.5,
                "meaning": "no|thing",
                "advice": "",
                "warn": None,
                "fail": None,
            }
        ],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return Run(folder)


def test_the_top_neurons_are_the_largest_at_that_epsilon_without_empty_ones(tmp_path: Path) -> None:
    run = made_up_run(tmp_path)
    assert last_epsilon(run) == 0.2
    top = top_neurons(run, "margin_drop", 0.2)
    assert [row["channel"] for row in top] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert {row["epsilon"] for row in top} == {0.2}
    assert [row["channel"] for row in top_neurons(run, "share", 0.1, 2)] == [11, 10]


def test_what_carries_the_attack_is_said_with_its_denominator(tmp_path: Path) -> None:
    found = made_up_run(tmp_path).summary
    said = "FGSM 0.2: conv1:7 alone rescues 25.0 % [21.0, 29.0] of 1,234 fooled images."
    assert sentences.patching(found).endswith(said)
    for row in found["patching"]:
        row["most_rescuing"] = None
    assert sentences.patching(found).endswith("No image is fooled, or no layer is called only once.")
    assert sentences.sweep(found) == "Sweep: reference (no graph|of <this>), in float32."


def test_half_a_layer_is_said_with_its_control(tmp_path: Path) -> None:
    said = sentences.cumulative(made_up_run(tmp_path).summary)
    assert "512 clean images" in said
    assert said.endswith(
        "conv1 without 2 neurons: 40.0 % [35.0, 45.0] in order of fragility, 45.0 % [40.0, 47.5] in order of "
        "targeting, 48.0 % at random [45.0 % to 50.0 % in 20 draws]."
    )


def test_a_sampled_sweep_says_that_it_estimates(tmp_path: Path) -> None:
    found = made_up_run(tmp_path).summary
    found["spec"] |= {"standard_error": 0.001, "found": {"sweep": "sampled", "sweep_reason": "asked for"}}
    found["dropout"][0]["largest_sampling_se"] = 0.00123
    assert sentences.sweep(found).endswith("standard errors of at most 0.12 pp (asked for: 0.1 pp).")


def test_ties_among_top_neurons_go_by_channel(tmp_path: Path) -> None:
    top = top_neurons(made_up_run(tmp_path), "clean_drop", 0.1, 3)
    assert [row["channel"] for row in top] == [0, 1, 2]


def test_the_summary_shows_every_part_and_only_the_headlines(tmp_path: Path) -> None:
    run = made_up_run(tmp_path)
    write_markdown(run, tmp_path / "summary.md")
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert text == markdown(run)
    tokens = parsed(text)
    titles = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert titles == [
        "a model on mnist",
        "Accuracy",
        "Verdicts of nodal dropout",
        "Largest clean margin drop (FGSM 0.2)",
        "Most targeted neurons (FGSM 0.2)",
        "Does the attack strike the fragile neurons?",
        "Checks",
    ]
    assert sum(token.type == "table_open" for token in tokens) == 5
    assert sum(token.type == "list_item_open" for token in tokens) == 2
    assert "1,200 test images; conv1 (12 neurons); site conv." in text
    inline = cells(text)
    most = inline.index("conv1:10")
    assert inline[most : most + 6] == [
        "conv1:10",
        "+1.00",
        "+1.00 [-1.00, +3.00]",
        "undecided",
        "+2.00 [+0.00, +4.00]",
        "–",
    ]
    assert "None" not in text


def test_a_clean_run_has_no_part_on_attacks(tmp_path: Path) -> None:
    run = made_up_run(tmp_path, epsilons=[])
    assert last_epsilon(run) is None
    text = markdown(run)
    assert "Largest clean margin drop" in text
    assert "targeted" not in text
    assert "[–" not in text
    assert "strike" not in text


def test_a_run_at_epsilon_zero_alone_has_no_part_on_attacks(tmp_path: Path) -> None:
    assert "targeted" not in markdown(made_up_run(tmp_path, epsilons=[0.0]))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_in_a_run_stay_text(tmp_path: Path, name: str) -> None:
    text = markdown(made_up_run(tmp_path, name))
    inline = cells(text)
    assert inline[0] == f"{name} on mnist"
    assert inline[-6:] == [name, "pass", "0.5", "–", "–", "no|thing"]
