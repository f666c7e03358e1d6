"""Copies the small files of the study's finished runs and trainings here, where they are committed.

python docs/study/keep.py
"""

from __future__ import annotations

from pathlib import Path

from fragile_neurons import FragileNeuronsError, open_run

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS, TRAINED = ROOT / "runs" / "study", ROOT / "trained" / "study"


def kept(path: Path) -> str:
    """A file's text, with the paths of this project relative to it: they are the same on every machine."""
    return path.read_text(encoding="utf-8").replace(f"{ROOT}/", "")


def main() -> None:
    for folder in sorted(RUNS.iterdir()):
        try:
            run = open_run(folder)
        except FragileNeuronsError as error:
            print(f"left out: {error}")
            continue
        target = HERE / "runs" / folder.name
        target.mkdir(parents=True, exist_ok=True)
        names = ["spec.toml", "summary.json", *(["neurons.csv"] if run.command == "analyze" else [])]
        for name in names:
            (target / name).write_text(kept(folder / name), encoding="utf-8")
    for card in sorted(TRAINED.glob("*/card.json")):
        (HERE / "cards").mkdir(exist_ok=True)
        (HERE / "cards" / f"{card.parent.name}.json").write_text(kept(card), encoding="utf-8")


if __name__ == "__main__":
    main()
