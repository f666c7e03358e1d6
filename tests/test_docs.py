"""What the documents show is true: their examples run, their commands exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fragile_neurons as fn
from fragile_neurons import open_run

ROOT = Path(__file__).parents[1]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readmes_library_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = (block for block in blocks("python") if "fn.dropout" in block)
    exec(compile(example, "README.md", "exec"), {})
    assert "value" in capsys.readouterr().out
    assert (tmp_path / "runs" / "library" / "neurons.csv").is_file()


def test_the_readmes_pictures_are_what_the_network_saw(
    finished: Path, small_classifier: fn.Classifier, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = (block for block in blocks("python") if ".examples" in block)
    made: dict[str, Any] = {}
    exec(compile(example.replace("runs/x", str(finished)), "README.md", "exec"), made)
    assert capsys.readouterr().out
    shown, epsilon = made["shown"], made["shown"]["epsilon"][0]
    assert 0 < np.abs(made["attacked"] - made["clean"]).max() <= epsilon + 1e-6
    for name, image in (("clean_top", made["clean"]), ("adversarial_top", made["attacked"])):
        with torch.no_grad():
            logits = small_classifier(torch.from_numpy(image).float().unsqueeze(0))
        assert shown[name][0].tolist() == logits[0].argsort(descending=True)[:3].tolist()


def test_every_file_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_public_names_are_listed_and_documented() -> None:
    import fragile_neurons

    assert sorted(fragile_neurons.__all__) == fragile_neurons.__all__
    for name in fragile_neurons.__all__:
        assert getattr(fragile_neurons, name).__doc__


def test_the_table_of_checks_is_the_one_in_the_code() -> None:
    from fragile_neurons.questions import QUESTIONS

    text = (ROOT / "docs" / "method.md").read_text()
    rows = [line for line in text[text.index("## Flagged") :].splitlines() if line.startswith("| `")]
    expected = []
    for one in QUESTIONS.values():
        fail = "–" if one.fail is None else f"{one.fail:g}"
        expected.append(f"| `{one.name}` | {one.statistic} | {one.warn:g} | {fail} | {one.waived} |")
    assert rows == expected


def test_every_column_of_a_run_is_explained_once(finished: Path) -> None:
    text = (ROOT / "docs" / "method.md").read_text().partition("## The columns of neurons.csv")[2]
    table = [line.split("|")[1] for line in text.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    explained = [name for names in table for name in re.findall("`([a-z_]+)`", names)]
    assert sorted(explained) == sorted(open_run(finished).neurons.column_names)
