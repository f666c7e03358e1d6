"""Through which neurons does an adversarial attack come, and can they be mended?"""

__version__ = "0.1.0"

from fragile_neurons.analysis.correlation import correlate
from fragile_neurons.analysis.cumulative import cumulative
from fragile_neurons.analysis.dropout import dropout
from fragile_neurons.analysis.patching import patching
from fragile_neurons.analysis.robustness import robust_accuracy
from fragile_neurons.analysis.targeting import targeting
from fragile_neurons.classifier import Classifier
from fragile_neurons.data.catalogue import load_data
from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import FragileNeuronsError, IncompleteError, InputError, IntegrityError
from fragile_neurons.hardening.judge import judge
from fragile_neurons.models.loading import load_model
from fragile_neurons.report.charts import chart
from fragile_neurons.runs.run import Run, open_run
from fragile_neurons.workflows import analyze, evaluate, harden

__all__ = [
    "Classifier",
    "FragileNeuronsError",
    "ImageData",
    "IncompleteError",
    "InputError",
    "IntegrityError",
    "Run",
    "analyze",
    "chart",
    "correlate",
    "cumulative",
    "dropout",
    "evaluate",
    "harden",
    "judge",
    "load_data",
    "load_model",
    "open_run",
    "patching",
    "robust_accuracy",
    "targeting",
]
