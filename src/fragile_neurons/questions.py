"""The table of flagged checks: what each asks, from which value it warns and fails, and what to do then."""

from __future__ import annotations

from dataclasses import dataclass

from fragile_neurons.probe import Check

IMAGES_PER_CLASS = 5
ROUNDING = 1e-9  # of a difference of shares
NEVER = "there is always an answer"
CHANCE = "clean accuracy is below twice chance"


@dataclass(frozen=True)
class Question:
    """A check: its statistic, larger is worse; a warning above `warn`, failed above `fail`."""

    name: str
    statistic: str
    warn: float
    fail: float | None
    waived: str
    advice: str

    def answer(self, value: float | None, told: str = "", *, sure: bool = True) -> Check:
        """The Check for this value; None where the question does not apply. Unsure values are not flagged."""
        if value is None:
            return Check(self.name, "not applicable", None, f"does not apply: {told or self.waived}")
        failed = self.fail is not None and value > self.fail + ROUNDING
        warned = value > self.warn + ROUNDING
        status = "pass" if not sure else "fail" if failed else "warn" if warned else "pass"
        meaning = f"{self.statistic}; {told}" if told else self.statistic
        advice = "" if status == "pass" else self.advice
        return Check(self.name, status, value, meaning, advice, self.warn, self.fail)


_INPUTS = (
    Question(
        "pixel range",
        "how far a pixel lies outside [0, 1]",
        0.0,
        0.0,
        NEVER,
        "give images in [0, 1], and mean and std to the classifier",
    ),
    Question(
        "above chance",
        "twice chance (of two classes 75 %) minus clean accuracy",
        0.0,
        None,
        NEVER,
        "nothing here says much about a trained network; check the weights, the normalisation and the order "
        "of the classes",
    ),
    Question(
        "normalisation",
        "accuracy gained under another normalisation, flagged where that is sure",
        0.05,
        0.05,
        NEVER,
        "the network does not see the images as it was trained to",
    ),
    Question(
        "class order",
        "accuracy gained with the outputs in another order, flagged where that is sure",
        0.2,
        0.2,
        f"fewer than {IMAGES_PER_CLASS} images per class",
        "order the data's classes as the network has them (folders are sorted)",
    ),
    Question(
        "zero gradient",
        "share of images at which no pixel has a gradient",
        0.01,
        0.1,
        NEVER,
        "attacks that climb a gradient prove nothing here; look for rounding, a saturated softmax or a "
        "detach, and trust only attacks without gradients (square)",
    ),
    Question(
        "gradient",
        "share of images where the margin does not change as its gradient says, by half or double",
        0.1,
        0.5,
        "no image has a gradient that rounding does not hide",
        "something in the network hides its true gradient, as a detach, rounding or a made-up backward pass "
        "does; attack a copy without it",
    ),
    Question(
        "equal logits",
        "share of images where all logits but the largest are equal",
        0.05,
        0.5,
        "there are two classes",
        "the outputs are decisions, not scores; take the logits before them",
    ),
    Question(
        "epsilon 0",
        "share of images that are predicted otherwise under FGSM of epsilon 0",
        0.0,
        0.01,
        NEVER,
        "the network does not answer the same image alike; make it deterministic",
    ),
)
_ATTACKS = (
    Question(
        "budget and bounds",
        "how far an attack's images lay outside the ball or [0, 1], before they were projected",
        1e-5,
        1e-3,
        NEVER,
        "the projected images may be weak; correct the attack, it works on pixels in [0, 1]",
    ),
    Question(
        "worst case",
        "accuracy reported as the worst case minus the least of any attack",
        0.0,
        0.0,
        "there is one attack",
        "take the worst case of each image, never a mean over attacks",
    ),
    Question(
        "rising accuracy",
        "largest rise of the worst case from one epsilon to the next",
        0.0,
        0.02,
        "there is one epsilon",
        "the attacks are too weak at the larger epsilon; give more steps, restarts or attacks",
    ),
    Question(
        "stronger attack",
        "accuracy reported as the worst case minus under PGD of decaying steps",
        0.02,
        0.1,
        CHANCE,
        "the reported attacks are too weak to call this robust: add pgd-strong or autoattack",
    ),
    Question(
        "PGD and FGSM",
        "accuracy under PGD minus under FGSM",
        0.02,
        0.05,
        CHANCE,
        "the gradient misleads an attack of many steps; look for gradient masking",
    ),
    Question(
        "unbounded PGD",
        "accuracy under PGD of epsilon 1",
        0.01,
        0.05,
        CHANCE,
        "an attack that may do anything fails, so it fails for lack of a gradient, not for robustness",
    ),
    Question(
        "steps",
        "accuracy that twice the steps of PGD take away",
        0.02,
        0.1,
        CHANCE,
        "PGD has not converged; add pgd-strong or autoattack",
    ),
    Question(
        "restarts",
        "share of images that one restart of PGD fools and all of them do not",
        0.0,
        0.02,
        CHANCE,
        "keep the worst restart of each image",
    ),
    Question(
        "Square",
        "accuracy under PGD minus under Square, which uses no gradient",
        0.02,
        0.05,
        CHANCE,
        "the gradient is masked: trust Square, not PGD",
    ),
    Question(
        "transferred",
        "accuracy under PGD minus under images made on a linear network",
        0.02,
        0.05,
        CHANCE,
        "the gradient is masked: images made elsewhere fool the network better than its own",
    ),
    Question(
        "noise",
        "accuracy under PGD minus under random signs",
        0.02,
        0.05,
        CHANCE,
        "PGD is no better than chance: the gradient is masked",
    ),
    Question(
        "losses",
        "accuracy under PGD on the cross-entropy and on the margin, their difference",
        0.05,
        0.15,
        CHANCE,
        "one of the losses is flat; take the worst case of pgd and pgd-margin",
    ),
    Question(
        "temperature",
        "accuracy that PGD takes away when the logits are divided by their median margin",
        0.05,
        0.15,
        CHANCE,
        "the softmax is saturated by the scale of the logits; attack the margin or smaller logits",
    ),
)
QUESTIONS = {question.name: question for question in (*_INPUTS, *_ATTACKS)}
