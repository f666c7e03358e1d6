"""Copies the small files of the study's finished runs and trainings here, where they are committed.

python docs/study/collect.py
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

from fragile_neurons import FragileNeuronsError
from fragile_neurons.cli.specs import specs_in
from fragile_neurons.runs.run import Run, open_intact_run

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "study"
COMMANDS = ("analyze", "evaluate", "harden")


def relative(path: Path) -> str:
    """A file's text, with the paths of this project relative to it: they are the same on every machine."""
    return path.read_text(encoding="utf-8").replace(f"{ROOT}/", "")


def finished_cards() -> dict[str, str]:
    """The cards of the trainings in train.txt that ended, by name of their folder."""
    lines = (HERE / "train.txt").read_text(encoding="utf-8").splitlines()
    folders = [ROOT / shlex.split(line)[-1] for line in lines]
    cards = [folder / "card.json" for folder in folders]
    return {card.parent.name: relative(card) for card in cards if card.exists()}


def runs_of_the_lists(cards: dict[str, str]) -> list[Run]:
    """Finished and undamaged, each of a spec in the lists and of the weights that the cards tell of."""
    asked = [spec for command in COMMANDS for spec in specs_in(command, HERE / f"{command}.toml")]
    trained = {name: json.loads(card)["weights_sha256"] for name, card in cards.items()}
    found = []
    for folder in sorted(RUNS.iterdir()):
        try:
            run = open_intact_run(folder)
        except FragileNeuronsError as error:
            print(f"left out: {error}")
            continue
        weights = run.spec.weights
        if run.spec.model_copy(update={"found": None}) not in asked:
            print(f"left out: {folder} is in none of the lists")
        elif weights and trained.get(Path(weights).parent.name) != run.summary["model"]["weights_sha256"]:
            print(f"left out: {folder} is of other weights than those that were trained last")
        else:
            found.append(run)
    return found


def main() -> None:
    """Run it where `make study` did: the lists name weights by their place."""
    if not RUNS.is_dir():
        sys.exit(f"nothing to collect: there is no {RUNS}")
    cards = finished_cards()
    kept = runs_of_the_lists(cards)
    for old in ("runs", "cards"):
        shutil.rmtree(HERE / old, ignore_errors=True)
    for run in kept:
        target = HERE / "runs" / run.folder.name
        target.mkdir(parents=True)
        names = ["spec.toml", "summary.json", *(["neurons.csv"] if run.command == "analyze" else [])]
        for name in names:
            (target / name).write_text(relative(run.folder / name), encoding="utf-8")
    (HERE / "cards").mkdir()
    for name, card in cards.items():
        (HERE / "cards" / f"{name}.json").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
