"""Copies the small files of the study's finished runs and trainings here, where they are committed.

python docs/study/collect.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fragile_neurons import FragileNeuronsError, open_run
from fragile_neurons.cli.specs import specs_in

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS, TRAINED = ROOT / "runs" / "study", ROOT / "trained" / "study"
COMMANDS = ("analyze", "evaluate", "harden")


def kept(path: Path) -> str:
    """A file's text, with the paths of this project relative to it: they are the same on every machine."""
    return path.read_text(encoding="utf-8").replace(f"{ROOT}/", "")


def main() -> None:
    """Run it where `make study` did: the lists name weights by their place."""
    asked = [spec for command in COMMANDS for spec in specs_in(command, HERE / f"{command}.toml")]
    for old in ("runs", "cards"):
        shutil.rmtree(HERE / old, ignore_errors=True)
    for folder in sorted(RUNS.iterdir()):
        try:
            run = open_run(folder)
        except FragileNeuronsError as error:
            print(f"left out: {error}")
            continue
        if run.spec.model_copy(update={"found": None}) not in asked:
            print(f"left out: {folder} is in none of the lists")
            continue
        target = HERE / "runs" / folder.name
        target.mkdir(parents=True)
        names = ["spec.toml", "summary.json", *(["neurons.csv"] if run.command == "analyze" else [])]
        for name in names:
            (target / name).write_text(kept(folder / name), encoding="utf-8")
    (HERE / "cards").mkdir()
    for card in sorted(TRAINED.glob("*/card.json")):
        (HERE / "cards" / f"{card.parent.name}.json").write_text(kept(card), encoding="utf-8")


if __name__ == "__main__":
    main()
