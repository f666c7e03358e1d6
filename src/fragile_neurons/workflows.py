"""Run, then report: what the commands and the library's larger functions do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fragile_neurons import own
from fragile_neurons.analysis.selection import Neurons, neurons_text
from fragile_neurons.analysis.verdicts import Rule
from fragile_neurons.attacks.catalogue import DEFAULT_ATTACKS, missing_extra
from fragile_neurons.classifier import Classifier
from fragile_neurons.data.images import ImageData
from fragile_neurons.evidence import conditions
from fragile_neurons.locks import alone
from fragile_neurons.norms import Epsilon, Epsilons, format_epsilon, parse_epsilon, parse_epsilons
from fragile_neurons.report.page import write_page
from fragile_neurons.report.tables import write_markdown
from fragile_neurons.runs.analyzed import collect_analysis
from fragile_neurons.runs.engines import Engine
from fragile_neurons.runs.engines.local import run_units
from fragile_neurons.runs.environment import environment
from fragile_neurons.runs.evaluated import collect_evaluation
from fragile_neurons.runs.export import (
    export_analysis,
    export_evaluation,
    export_examples,
    export_hardening,
    write_file,
)
from fragile_neurons.runs.folder import (
    open_ledger,
    readable_disk_errors,
    refuse_elsewhere,
    remove_checkpoints,
    resumable,
)
from fragile_neurons.runs.hardened import collect_hardening
from fragile_neurons.runs.hardening import fitted, screened, trials_of
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import Unit, make_plan, plan_evaluation, plan_hardening
from fragile_neurons.runs.remaining import Progress, run_remaining, silent
from fragile_neurons.runs.run import REPORT, Run, open_intact_run, open_run
from fragile_neurons.runs.scoring import scoring_units
from fragile_neurons.runs.spec import MINUTES, STEPS, EvaluateSpec, HardenSpec, Spec, make_spec
from fragile_neurons.runs.subject import Subject, open_spec, open_subject, open_to_harden
from fragile_neurons.sweeps.sampling import STANDARD_ERROR

WRITERS: dict[str, Callable[[Run, Path], None]] = {"summary.md": write_markdown, REPORT: write_page}

RUNS = "runs"


def analyze(
    classifier: Classifier,
    data: ImageData,
    *,
    output: str | Path | None = None,
    layer: str = "first",
    neurons: Neurons = "all",
    site: str = "conv",
    replace: str = "zero",
    epsilons: Epsilons,
    mode: str = "adaptive",
    sweep: str = "auto",
    standard_error: float = STANDARD_ERROR,
    verdict_rule: str = "tested",
    tolerance: float = 0.01,
    batch_size: int = 256,
    threads: int | None = None,
    seed: int = 0,
    force: bool = False,
    engine: Engine = run_units,
    progress: Progress = silent,
) -> Run:
    """Dropout, targeting and their correlation, into a run folder (default runs/<name>); resumes there.

    layer: `first`, `all` or names with commas. neurons: `all`, so many of each layer, or names such as
    conv1:3. site: conv, norm or act. replace: zero or mean. epsilons: in pixels of [0, 1], () for clean only.
    mode: adaptive (each network without a neuron is attacked anew) or transfer. sweep: auto, exact, reference
    or sampled, whose estimates have `standard_error`, a fraction. verdict_rule: tested, with its tolerance, a
    fraction, or below-mean. threads: cores of each process, by default all, up to 8.
    Raises InputError where an option, the network or the images cannot be used, IncompleteError where units
    of work failed; what is finished is kept.
    """
    Rule(verdict_rule, tolerance)
    spec = make_spec(
        **_subject_options(classifier, data, threads),
        layer=layer,
        neurons=neurons_text(neurons),
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
    subject = open_subject(spec, classifier, data)
    return run_subject(subject, output=output, force=force, engine=engine, progress=progress)


def evaluate(
    classifier: Classifier,
    data: ImageData,
    *,
    output: str | Path | None = None,
    attacks: str | Sequence[str] = DEFAULT_ATTACKS,
    epsilons: Epsilons,
    batch_size: int = 256,
    threads: int | None = None,
    seed: int = 0,
    force: bool = False,
    engine: Engine = run_units,
    progress: Progress = silent,
) -> Run:
    """Accuracy under each attack and in the worst case, with its checks, into a run folder; resumes there.

    attacks: by name, or of your own, path/file.py:function. Otherwise as analyze, in what it raises, too.
    """
    spec = make_spec(
        command="evaluate",
        attacks=[own.absolute(name) for name in ([attacks] if isinstance(attacks, str) else attacks)],
        epsilons=[format_epsilon(epsilon) for epsilon in parse_epsilons(epsilons)],
        **_subject_options(classifier, data, threads),
        batch_size=batch_size,
        seed=seed,
    )
    subject = open_subject(spec, classifier, data)
    return run_subject(subject, output=output, force=force, engine=engine, progress=progress)


def harden(
    classifier: Classifier,
    *,
    val: ImageData,
    test: ImageData,
    train: ImageData | None = None,
    epsilon: Epsilon,
    epsilons: Epsilons = (),
    output: str | Path | None = None,
    rule: str = "learned",
    layer: str = "all",
    site: str = "auto",
    budget: float = 0.01,
    steps: int = STEPS,
    minutes: float = MINUTES,
    alternatives: bool = True,
    score: str = "clean",
    strength: float = 0.5,
    keep_energy: bool = False,
    tolerance: float = 0.01,
    batch_size: int = 256,
    threads: int | None = None,
    seed: int = 0,
    force: bool = False,
    engine: Engine = run_units,
    progress: Progress = silent,
) -> Run:
    """Gains for the neurons of a network, judged on test, into a run folder; resumes there.

    Fitted on train, or on one half of val, chosen on val. Run.hardened_weights is what the network's own
    class loads. Raises InputError where the images overlap, or a layer's weights cannot hold gains.
    """
    spec = make_spec(
        command="harden",
        rule=rule,
        epsilon=format_epsilon(parse_epsilon(epsilon)),
        epsilons=[format_epsilon(one) for one in parse_epsilons(epsilons)],
        **_subject_options(classifier, test, threads),
        layer=layer,
        site=site,
        budget=budget,
        steps=steps,
        minutes=minutes,
        alternatives=alternatives,
        score=score,
        strength=strength,
        keep_energy=keep_energy,
        tolerance=tolerance,
        batch_size=batch_size,
        seed=seed,
    )
    assert isinstance(spec, HardenSpec)
    subject = open_to_harden(spec, classifier, val=val, test=test, train=train)
    return run_subject(subject, output=output, force=force, engine=engine, progress=progress)


def _subject_options(classifier: Classifier, data: ImageData, threads: int | None) -> dict[str, object]:
    return {
        **({} if threads is None else {"threads": threads}),
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
    spec: Spec,
    *,
    output: str | Path | None = None,
    parent: str | Path | None = None,
    force: bool = False,
    engine: Engine = run_units,
    progress: Progress = silent,
) -> Run:
    """The same for a model and data by name; the run of the same spec is continued or found done.

    output: the run folder. parent: the folder for a run folder of the default name (runs).
    """
    subject = open_spec(spec)
    folder = Path(parent or RUNS) / subject.spec.run_name if output is None else output
    return run_subject(subject, output=folder, force=force, engine=engine, progress=progress)


def resume(folder: str | Path, *, engine: Engine = run_units, progress: Progress = silent) -> Run:
    """Finish the run in a folder: only what has no result yet, or a damaged one, is computed."""
    with Ledger(Path(folder)) as ledger:
        spec = ledger.spec
    return run_subject(open_spec(spec), output=folder, force=False, engine=engine, progress=progress)


def run_subject(
    subject: Subject,
    *,
    output: str | Path | None,
    force: bool,
    engine: Engine = run_units,
    progress: Progress,
) -> Run:
    """Plan, execute, export, report; of a finished run nothing is computed, what is damaged is made again.

    Raises IncompleteError where units failed; all others are computed and kept.
    """
    spec, here = subject.spec, environment(subject)
    folder = Path(RUNS) / spec.run_name if output is None else Path(output)
    with (
        readable_disk_errors(folder),
        alone(folder),
        open_ledger(folder, spec, _plan(subject), here, force=force) as ledger,
        resumable(folder),
    ):
        refuse_elsewhere(ledger, here)
        ledger.forget_damage()
        run_remaining(subject, ledger, engine, progress)
        if not ledger.is_exported:
            if isinstance(spec, EvaluateSpec):
                names = export_evaluation(folder, subject, collect_evaluation(subject, ledger))
            elif isinstance(spec, HardenSpec):
                names = export_hardening(folder, subject, collect_hardening(subject, ledger))
            else:
                names = export_analysis(folder, subject, collect_analysis(subject, ledger))
            names += export_examples(folder, ledger)
            for name, write in WRITERS.items():
                write_file(folder / name, partial(write, Run(folder)))
            ledger.record_files([*names, *WRITERS])
            remove_checkpoints(folder)
    return open_run(folder)


def report(folder: str | Path) -> Path:
    """Write report.html of a finished run once more; its path."""
    run = open_intact_run(folder)
    path = run.folder / REPORT
    with readable_disk_errors(run.folder), alone(run.folder), Ledger(run.folder) as ledger:
        write_file(path, partial(write_page, run))
        ledger.record_file(REPORT)
    return path


def _plan(subject: Subject) -> tuple[Unit, ...]:
    spec = subject.spec
    assert spec.found is not None
    images, batch_size = spec.found.images, spec.batch_size
    held = [name for name in conditions(subject.data) if name != "Square" or not missing_extra("square")]
    if isinstance(spec, EvaluateSpec):
        runnable = [name for name in spec.attacks if name not in spec.unavailable]
        return plan_evaluation(runnable, held, images, batch_size)
    if isinstance(spec, HardenSpec):
        return plan_hardening(
            scoring_units(subject),
            screened(subject),
            fitted(subject),
            trials_of(subject, stronger=not missing_extra("autoattack")),
            held,
            images,
            batch_size,
        )
    patched = any(parse_epsilons(spec.epsilons))
    sampled = spec.found.sweep == "sampled"
    return make_plan(subject.selection, images, batch_size, patched=patched, sampled=sampled)
