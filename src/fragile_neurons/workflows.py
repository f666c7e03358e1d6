"""Run, then report: what the commands and the library's larger functions do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from pathlib import Path

from fragile_neurons import own
from fragile_neurons.analysis.verdicts import Rule
from fragile_neurons.attacks.catalogue import missing_extra
from fragile_neurons.classifier import Classifier
from fragile_neurons.data.images import ImageData
from fragile_neurons.evidence import conditions
from fragile_neurons.honesty import check_inputs
from fragile_neurons.norms import format_epsilon, parse_epsilons
from fragile_neurons.report.tables import write_markdown
from fragile_neurons.runs.engines.local import run_units
from fragile_neurons.runs.evaluation import collect_evaluation
from fragile_neurons.runs.export import export_analysis, export_evaluation, write_file
from fragile_neurons.runs.folder import REPORTS, open_ledger, readable_disk_errors, resumable
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import make_plan, plan_evaluation
from fragile_neurons.runs.results import collect_results
from fragile_neurons.runs.run import Run, open_run
from fragile_neurons.runs.spec import EvaluateSpec, Spec, make_spec
from fragile_neurons.runs.subject import Subject, open_spec, open_subject
from fragile_neurons.sweeps.sampling import STANDARD_ERROR

log = logging.getLogger(__name__)

Advance = Callable[[int, str], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]


def silent(title: str, total: int) -> AbstractContextManager[Advance]:
    """Progress that nobody hears."""
    return nullcontext(lambda done, note: None)


def analyze(
    classifier: Classifier,
    data: ImageData,
    *,
    output: str | Path | None = None,
    layer: str = "first",
    neurons: str | Sequence[str] = "all",
    site: str = "conv",
    replace: str = "zero",
    epsilons: Sequence[str | float | Fraction],
    mode: str = "adaptive",
    sweep: str = "auto",
    standard_error: float = STANDARD_ERROR,
    verdict_rule: str = "tested",
    tolerance: float = 0.01,
    batch_size: int = 256,
    seed: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> Run:
    """Dropout, targeting and their correlation, into a run folder (default runs/<name>); resumes there."""
    Rule(verdict_rule, tolerance)
    spec = make_spec(
        **_subject_options(classifier, data),
        layer=layer,
        neurons=neurons if isinstance(neurons, str) else ",".join(neurons),
        site=site,
        replace=replace,
        epsilons=[format_epsilon(epsilon) for epsilon in parse_epsilons(epsilons)],
        mode=mode,
        sweep=sweep,
        standard_error=standard_error,
        verdict_rule=verdict_rule,
        tolerance=tolerance,
        batch_size=batch_size,
        seed=seed,
    )
    return run_subject(open_subject(spec, classifier, data), output=output, force=force, progress=progress)


def evaluate(
    classifier: Classifier,
    data: ImageData,
    *,
    output: str | Path | None = None,
    attacks: Sequence[str] = ("fgsm", "pgd", "pgd-strong"),
    epsilons: Sequence[str | float | Fraction],
    batch_size: int = 256,
    seed: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> Run:
    """Accuracy under each attack and in the worst case, with its checks, into a run folder; resumes there."""
    spec = make_spec(
        command="evaluate",
        attacks=[own.absolute(name) for name in attacks],
        epsilons=[format_epsilon(epsilon) for epsilon in parse_epsilons(epsilons)],
        **_subject_options(classifier, data),
        batch_size=batch_size,
        seed=seed,
    )
    return run_subject(open_subject(spec, classifier, data), output=output, force=force, progress=progress)


def _subject_options(classifier: Classifier, data: ImageData) -> dict[str, object]:
    return {
        "model": classifier.name,
        "mean": None if classifier.mean is None else classifier.mean.flatten().tolist(),
        "std": None if classifier.std is None else classifier.std.flatten().tolist(),
        "data": data.name,
        "split": data.split,
        "limit": len(data),
        "device": str(classifier.device),
        "dtype": classifier.dtype,
    }


def run_spec(
    spec: Spec, *, output: str | Path | None = None, force: bool = False, progress: Progress = silent
) -> Run:
    """The same for a model and data by name; the run of the same spec is continued or found done."""
    return run_subject(open_spec(spec), output=output, force=force, progress=progress)


def resume(folder: str | Path, *, progress: Progress = silent) -> Run:
    """Finish the run in a folder: only what has no result yet, or a damaged one, is computed."""
    with Ledger(Path(folder)) as ledger:
        spec = ledger.spec
    return run_subject(open_spec(spec), output=folder, force=False, progress=progress)


def run_subject(subject: Subject, *, output: str | Path | None, force: bool, progress: Progress) -> Run:
    """Plan, execute, export, report; a finished run is only opened."""
    spec = subject.spec
    folder = Path("runs") / spec.run_name if output is None else Path(output)
    assert spec.found is not None
    if isinstance(spec, EvaluateSpec):
        runnable = [name for name in spec.attacks if name not in spec.unavailable]
        held = [name for name in conditions(subject.data) if name != "Square" or not missing_extra("square")]
        units = plan_evaluation(runnable, held, spec.found.images, spec.batch_size)
    else:
        patched = any(parse_epsilons(spec.epsilons))
        sampled = spec.found.sweep == "sampled"
        units = make_plan(
            subject.selection, spec.found.images, spec.batch_size, patched=patched, sampled=sampled
        )
    with (
        readable_disk_errors(folder),
        open_ledger(folder, spec, units, force=force) as ledger,
        resumable(folder),
    ):
        ledger.forget_damage()
        _run_pending(subject, ledger, progress)
        if not ledger.is_exported:
            if isinstance(spec, EvaluateSpec):
                names = export_evaluation(folder, subject, collect_evaluation(subject, ledger))
            else:
                names = export_analysis(folder, subject, collect_results(subject, ledger))
            for name in REPORTS:
                write_file(folder / name, lambda path: write_markdown(Run(folder), path))
            ledger.record_files([*names, *REPORTS])
    return open_run(folder)


def _run_pending(subject: Subject, ledger: Ledger, progress: Progress) -> None:
    total, left = len(ledger.units()), len(ledger.pending())
    with progress("units", total) as advance:
        advance(total - left, "" if left else "all of them before")
        for done, unit in enumerate(run_units(subject, ledger), total - left + 1):
            advance(done, unit.id)
            if unit.kind == "gradients":
                _warn(subject, ledger)


def _warn(subject: Subject, ledger: Ledger) -> None:
    """Tell at once what is wrong with the inputs: the rest takes minutes."""
    cheap = {
        unit.kind: ledger.result(unit) for unit in ledger.units() if unit.kind in ("inputs", "gradients")
    }
    for check in check_inputs(cheap["inputs"], cheap["gradients"], subject.data.classes):
        if check.status in ("warn", "fail"):
            log.warning("%s (%s): %s; %s", check.name, check.status, check.meaning, check.advice)
