"""What a run does when a unit fails, and where another machine would compute other numbers."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from small import NEURONS, UNITS, finish, small_subject
from torch import nn

from fragile_neurons import Classifier, ImageData, IncompleteError, InputError, analyze, open_run
from fragile_neurons.runs.engines import local, open_engine
from fragile_neurons.runs.environment import ARITHMETIC, difference, environment
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import Needs, Unit, make_plan
from fragile_neurons.runs.subject import Subject


def failing(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> list[str]:
    """Let units of these kinds fail; the ids of all that are tried."""
    tried: list[str] = []

    def execute(subject: Subject, unit: Unit, *given: Any) -> dict[str, Any]:
        tried.append(unit.id)
        if unit.kind in kinds:
            raise MemoryError(f"no room for {unit.kind}")
        return execute_unit(subject, unit, *given)

    monkeypatch.setattr(local, "execute_unit", execute)
    return tried


def test_a_unit_that_fails_is_recorded_and_the_rest_is_finished(
    subject: Subject, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = failing(monkeypatch, "predictions")
    with pytest.raises(IncompleteError) as error:
        finish(subject, tmp_path / "run")
    # two spans of predictions fail, the orders that need them and the five curves after them are left out
    assert len(tried) == UNITS - 6
    assert error.value.exit_code == 3
    assert f"2 units of work failed, {UNITS - 8} of {UNITS} are done and kept" in str(error.value)
    assert "predictions images 0-31: MemoryError: no room for predictions" in str(error.value)
    with Ledger(tmp_path / "run") as ledger:
        assert set(ledger.failures) == {"predictions images 0-31", "predictions images 32-39"}
    with pytest.raises(IncompleteError, match="8 of 23 units are left"):
        open_run(tmp_path / "run")
    tried = failing(monkeypatch)
    finish(subject, tmp_path / "run")
    assert len(tried) == 8
    with Ledger(tmp_path / "run") as ledger:
        assert ledger.failures == {}
    assert (tmp_path / "run" / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


def test_what_a_unit_needs_comes_before_it_in_every_plan(subject: Subject) -> None:
    for sampled in (False, True):
        plan = make_plan(subject.selection, 4_096, 256, sampled=sampled)
        needs, place = Needs(plan), {unit.id: number for number, unit in enumerate(plan)}
        assert len(place) == len(plan)
        for unit in plan:
            assert all(place[one.id] < place[unit.id] for one in needs.of(unit))
        tops = [unit for unit in plan if unit.kind == "top"]
        assert len(tops) == sampled
        for top in tops:
            drops = {unit.id for unit in plan if unit.kind == "drops"}
            assert {one.id for one in needs.of(top)} >= drops


@pytest.mark.parametrize("name", ["torch", "fragile-neurons", ARITHMETIC])
def test_a_run_is_not_gone_on_with_where_other_numbers_come_out(
    subject: Subject, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    failing(monkeypatch, "orders")
    with pytest.raises(IncompleteError):
        finish(subject, tmp_path / "run")
    tried = failing(monkeypatch)
    changed = environment(subject) | {name: "something else"}
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("fragile_neurons.workflows.environment", lambda subject: changed)
        with pytest.raises(InputError, match="begun where other numbers come out") as error:
            finish(subject, tmp_path / "run")
        assert ("processor" if name == ARITHMETIC else name) in str(error.value).splitlines()[1]
        assert tried == []
        finish(subject, finished)  # nothing is left to compute: it only opens
    finish(subject, tmp_path / "run")


def test_the_digest_follows_arithmetic_weights_and_threads_of_the_spec_alone(subject: Subject) -> None:
    here = environment(subject)
    assert environment(small_subject()) == here
    assert difference(here, dict(here)) == ""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert environment(subject) == here
    torch.set_num_threads(before)
    with torch.no_grad():
        subject.classifier.module.get_parameter("fc.bias")[0] += 1e-6
    assert environment(subject)[ARITHMETIC] != here[ARITHMETIC]


def test_an_engine_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="no such engine"), open_engine("spark"):
        pass


def test_a_network_without_gradients_is_refused_in_words_not_by_the_digest(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    class Mute(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                found: torch.Tensor = self.module(images)
            return found

    mute = Classifier(Mute(small_classifier.module), mean=[0.4], std=[0.3], name="small")
    with pytest.raises(InputError, match="gradient"):
        analyze(mute, small_data, epsilons=["0.05"], output=tmp_path / "run")


def test_a_refused_resume_leaves_a_finished_run_as_it_is(
    subject: Subject, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(own / "run.db")) as connection, connection:
        connection.execute("UPDATE results SET sha256 = 'x' WHERE unit LIKE 'examples%'")
    changed = environment(subject) | {"torch": "0.4.1"}
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("fragile_neurons.workflows.environment", lambda subject: changed)
        with pytest.raises(InputError, match=r"torch: 0\.4\.1 instead of "):
            finish(subject, own)
    assert open_run(own).neurons.num_rows == NEURONS
    finish(subject, own)
    with Ledger(own) as ledger:
        assert ledger.damage() == []


def test_a_run_that_an_older_version_began_goes_on(
    subject: Subject, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "orders")
    with pytest.raises(IncompleteError):
        finish(subject, tmp_path / "run")
    failing(monkeypatch)
    with closing(sqlite3.connect(tmp_path / "run" / "run.db")) as connection, connection:
        connection.execute("DROP TABLE environment")
        connection.execute("DROP TABLE failures")
    finish(subject, tmp_path / "run")
    assert (tmp_path / "run" / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()
