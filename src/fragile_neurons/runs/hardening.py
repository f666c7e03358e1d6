"""One unit of `harden`; the networks are made anew from the results of the units before."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.evidence import (
    Arrays,
)
from fragile_neurons.folding import fold
from fragile_neurons.hardening import search
from fragile_neurons.hardening.choose import SHRINKING, STRENGTHS, try_changes
from fragile_neurons.hardening.gains import (
    LARGEST,
    SMALLEST,
    Gains,
    Strength,
)
from fragile_neurons.hardening.learn import (
    BATCH,
    GAINS,
    WEIGHTS,
    Learner,
    alternatives,
    between,
    make_learner,
    make_schedule,
    seconds_per_step,
    with_weights,
)
from fragile_neurons.hardening.trials import (
    CONTROLS,
    HARDENED,
    ORIGINAL,
    TEMPERED,
    Trial,
    control,
    find_temperature,
    make_trials,
    run_trial,
    temper,
)
from fragile_neurons.norms import parse_epsilon, parse_epsilons
from fragile_neurons.runs.joining import Given
from fragile_neurons.runs.plan import CHECKPOINT, Unit
from fragile_neurons.runs.scoring import rule_gains
from fragile_neurons.runs.subject import Subject, hardening_parts
from fragile_neurons.training.loop import fit

Results = Sequence[tuple[Unit, Arrays]]


def execute_hardening(subject: Subject, unit: Unit, given: Results) -> Arrays:
    """The arrays of one unit, by name; given: the results of the units that it needs."""
    spec, hardening = hardening_parts(subject)
    if unit.kind == "candidates":
        return _screen(subject, unit.attack, given)
    if unit.kind == "pace":
        learners = [_learner(subject, network) for network in fitted(subject)]
        return {"seconds": np.array(seconds_per_step(learners, hardening.fitting, _batch(subject)))}
    if unit.kind == "fit":
        return _fit(subject, unit.network, given)
    if unit.kind == "chosen":
        return _choose(subject, unit.network, given)
    networks = {name: network_of(subject, name, given) for name in {unit.network, unit.source} - {""}}
    if unit.kind == "temperature":
        found = find_temperature(
            subject.classifier, networks[HARDENED], hardening.choosing, batch_size=spec.batch_size
        )
        return {"temperature": np.array(found)}
    named = (unit.network, unit.attack, unit.source)
    trial = next(one for one in trials_of(subject) if (one.network, one.attack, one.source) == named)
    return run_trial(
        trial,
        networks,
        subject.data,
        batch_size=spec.batch_size,
        seed=spec.seed,
        start=unit.start,
        stop=unit.stop,
    )


def network_of(subject: Subject, name: str, given: Results) -> Classifier:
    """The original, or one that an earlier unit has chosen."""
    if name == ORIGINAL:
        return subject.classifier
    if name == TEMPERED:
        temperature = next(arrays["temperature"] for unit, arrays in given if unit.kind == "temperature")
        return temper(network_of(subject, HARDENED, given), temperature.item())
    arrays = next(arrays for unit, arrays in given if unit.kind == "chosen" and unit.network == name)
    return _network(subject, name, arrays)


def gains_of(subject: Subject, arrays: Arrays) -> Gains:
    """The gains among a unit's results."""
    return Gains.from_arrays(subject.selection.sites, arrays)


def trials_of(subject: Subject, *, stronger: bool = True) -> list[Trial]:
    """All that the networks of a run are asked; stronger: APGD as well."""
    spec = hardening_parts(subject)[0]
    return make_trials(
        len(subject.data),
        parse_epsilon(spec.epsilon),
        parse_epsilons(spec.epsilons),
        alternatives=_alternatives(subject),
        controls=CONTROLS,
        stronger=stronger,
    )


def screened(subject: Subject) -> list[str]:
    """The scores that candidates are screened by."""
    return list(search.SCORES) if hardening_parts(subject)[0].rule == "searched" else []


def fitted(subject: Subject) -> list[str]:
    """The networks that are fitted, in the order of their paces."""
    return ([HARDENED] if hardening_parts(subject)[0].rule == "learned" else []) + _alternatives(subject)


def _alternatives(subject: Subject) -> list[str]:
    return alternatives(subject.classifier) if hardening_parts(subject)[0].alternatives else []


def _screen(subject: Subject, score: str, given: Given) -> Arrays:
    spec, hardening = hardening_parts(subject)
    candidates = rule_gains(subject, given, score, search.STRENGTHS)
    return search.screen(
        subject.classifier,
        candidates,
        hardening.choosing,
        parse_epsilon(spec.epsilon),
        batch_size=spec.batch_size,
        seed=spec.seed,
    )


def _choose(subject: Subject, network: str, given: Results) -> Arrays:
    """What a network is from now on: the best of its candidates.

    kept: whether one keeps the budget and helps; else the original's own gains or weights, but for a control,
    which stays at its weakest. taken: the place of the one taken, -1 for the original.
    """
    spec, hardening = hardening_parts(subject)
    candidates, strengths = _candidates(subject, network, given)
    if network == HARDENED and spec.rule == "proportional":
        return candidates[0]
    tried = try_changes(
        subject.classifier,
        [partial(_network, subject, network, arrays) for arrays in candidates],
        hardening.choosing,
        None if network in CONTROLS else parse_epsilon(spec.epsilon),
        budget=spec.budget,
        batch_size=spec.batch_size,
        seed=spec.seed,
    )
    taken = tried.shrunk(spec.budget) if network in CONTROLS else tried.best()
    return {
        **(_unchanged(subject, network, given) if taken is None else candidates[taken]),
        "tried clean": tried.clean,
        "tried attacked": tried.attacked,
        "which attacked": np.array(tried.which, np.int64),
        "kept": np.array(taken is not None),
        "taken": np.array(-1 if taken is None else taken),
        "strengths": np.array(strengths),
    }


def _candidates(subject: Subject, network: str, given: Results) -> tuple[list[Arrays], tuple[float, ...]]:
    """What a network may become, and the strengths that this is, if it is strengths of one change."""
    spec = hardening_parts(subject)[0]
    fit = next((arrays for unit, arrays in given if unit.kind == "fit"), {})
    if network in _alternatives(subject):
        return [between(subject.classifier, _weights(fit), strength) for strength in STRENGTHS], STRENGTHS
    if network in CONTROLS:
        hardened = gains_of(subject, next(arrays for unit, arrays in given if unit.kind == "chosen"))
        held = control(network, hardened, spec.seed)
        return [held.power(strength).to_arrays() for strength in SHRINKING], SHRINKING
    if spec.rule == "learned":
        gains = gains_of(subject, fit)
        return [gains.power(strength).to_arrays() for strength in STRENGTHS], STRENGTHS
    if spec.rule == "searched":
        screened = {unit.attack: arrays for unit, arrays in given if unit.kind == "candidates"}
        names = list(screened)
        places = search.finalists(list(screened.values()), spec.budget)
        found = [
            rule_gains(subject, given, names[score], [search.STRENGTHS[place]]) for score, place in places
        ]
        return [one.to_arrays() for (one,) in found], ()
    strength = Strength(spec.strength, spec.strength)
    return [one.to_arrays() for one in rule_gains(subject, given, spec.score, [strength])], ()


def _network(subject: Subject, name: str, arrays: Arrays) -> Classifier:
    if name in _alternatives(subject):
        return with_weights(subject.classifier, _weights(arrays))
    return fold(subject.classifier, gains_of(subject, arrays).changes, subject.selection.images)


def _unchanged(subject: Subject, network: str, given: Results) -> Arrays:
    """The original, in the form of a candidate."""
    if network in _alternatives(subject):
        (weights,) = (_weights(arrays) for unit, arrays in given if unit.kind == "fit")
        state = subject.classifier.module.state_dict()
        return {key: state[key.removeprefix(WEIGHTS)].cpu().numpy() for key in weights}
    ones = [np.ones(layer.channels) for layer in subject.selection.layers]
    return Gains.of_factors(subject.selection.sites, ones).to_arrays()


def _weights(arrays: Arrays) -> Arrays:
    return {key: one for key, one in arrays.items() if key.startswith(WEIGHTS)}


def _learner(subject: Subject, network: str) -> Learner:
    what = GAINS if network == HARDENED else network
    epsilon = parse_epsilon(hardening_parts(subject)[0].epsilon)
    return make_learner(what, subject.classifier, subject.selection.sites, epsilon)


def _is_usable(subject: Subject, network: str, found: Arrays) -> bool:
    """Whether a fit came to finite numbers, to gains that are some, and to a network with finite logits."""
    finite = all(np.isfinite(array).all() for array in found.values())
    factors = [array for name, array in found.items() if name.endswith("/factors")]
    if not finite or any((one < SMALLEST).any() or (one > LARGEST).any() for one in factors):
        return False
    fitted_network = _network(subject, network, found)
    with torch.no_grad(), evaluating(fitted_network):
        return bool(torch.isfinite(fitted_network(subject.selection.images)).all())


def _batch(subject: Subject) -> int:
    return min(BATCH, subject.spec.batch_size)


def _fit(subject: Subject, network: str, given: Results) -> Arrays:
    """Gains or weights after their fit, those of the original if it diverged; its steps and seconds.

    seconds: nan if it went on from a checkpoint.
    """
    spec, hardening = hardening_parts(subject)
    ((_, pace),) = given
    seconds = dict(zip(fitted(subject), pace["seconds"].tolist(), strict=True))
    learner = _learner(subject, network)
    meant = spec.steps * seconds.get(HARDENED, seconds[network])  # the gains' time is everybody's
    steps = max(1, round(min(meant, 60 * spec.minutes) / seconds[network]))
    schedule = make_schedule(learner, steps, hardening.fitting, _batch(subject), spec.seed)
    checkpoint = hardening.scratch / CHECKPOINT.format(network)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    resumed, start = checkpoint.exists(), time.perf_counter()
    with learner.working(), torch.random.fork_rng():
        walk = fit(
            learner.module,
            learner.loss,
            hardening.fitting,
            schedule,
            checkpoint=checkpoint,
            purpose={"network": network, "run": spec.digest},
        )
        for progress in walk:
            hardening.tell(f"step {progress.epoch}.{progress.step}, loss {progress.loss:.3f}")
    seconds_taken = math.nan if resumed else time.perf_counter() - start
    found = learner.result()
    diverged = not _is_usable(subject, network, found)
    return {
        **(_unchanged(subject, network, [(Unit("fit", 0, 0), found)]) if diverged else found),
        "steps": np.array(steps),
        "seconds": np.array(seconds_taken),
        "diverged": np.array(diverged),
    }
