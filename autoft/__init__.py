"""autoft: a plugin-based AutoML fine-tuning engine for models of images: classes, labels, numbers.

The public names, each imported when first asked for: importing this package costs next to nothing and imports
neither torch, timm, ray nor onnx.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoft.api import resume, search
    from autoft.builtin.searchers import Asha
    from autoft.errors import (
        AutoftError,
        BackboneUnavailable,
        DataError,
        GateFailed,
        Interrupted,
        PluginError,
        RunFailed,
        RunFolderError,
        StudyError,
        UnreadableImage,
        UserError,
    )
    from autoft.parts.base import Adapter, Exporter, FreezeStrategy, Problem, Searcher, Task, Zoo
    from autoft.parts.hookspecs import hookimpl
    from autoft.parts.linear_head import LinearHead
    from autoft.parts.metric import Metric
    from autoft.parts.network import Network
    from autoft.tasks.multi_label import MultiLabel
    from autoft.tasks.ordinal import Ordinal
    from autoft.tasks.regression import Regression
    from autoft.tasks.single_label import SingleLabel
    from autoft.values.backbone import Backbone, InputSpec, ParameterInfo, Stage
    from autoft.values.bundle import Calibration
    from autoft.values.dataset import Imbalance
    from autoft.values.handoff import Artifact, Handoff, Preprocess
    from autoft.values.ledger import Ledger, TrialRecord
    from autoft.values.plan import ClosedFormHead, GradientHead, ParameterGroup, Plan, Recipe
    from autoft.values.space import Choice, Circumstances, Dimension, Float, Int, Params, Scalar, Space
    from autoft.values.target import MetricFacts, Targets
    from autoft.values.trial import DONE, WAIT, Candidate, Clock, Done, Report, Slice, Trial, Wait

__version__ = "0.1.0"

# onnxruntime from 1.29 on sends events to its maker, and writes to ~/.cache/Microsoft for that, unless this is set when
# it is first imported, by whichever module or plugin; what its own API switches off later comes too late for both.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "DONE",
    "WAIT",
    "Adapter",
    "Artifact",
    "Asha",
    "AutoftError",
    "Backbone",
    "BackboneUnavailable",
    "Calibration",
    "Candidate",
    "Choice",
    "Circumstances",
    "Clock",
    "ClosedFormHead",
    "DataError",
    "Dimension",
    "Done",
    "Exporter",
    "Float",
    "FreezeStrategy",
    "GateFailed",
    "GradientHead",
    "Handoff",
    "Imbalance",
    "InputSpec",
    "Int",
    "Interrupted",
    "Ledger",
    "LinearHead",
    "Metric",
    "MetricFacts",
    "MultiLabel",
    "Network",
    "Ordinal",
    "ParameterGroup",
    "ParameterInfo",
    "Params",
    "Plan",
    "PluginError",
    "Preprocess",
    "Problem",
    "Recipe",
    "Regression",
    "Report",
    "RunFailed",
    "RunFolderError",
    "Scalar",
    "Searcher",
    "SingleLabel",
    "Slice",
    "Space",
    "Stage",
    "StudyError",
    "Targets",
    "Task",
    "Trial",
    "TrialRecord",
    "UnreadableImage",
    "UserError",
    "Wait",
    "Zoo",
    "__version__",
    "hookimpl",
    "resume",
    "search",
]

_HOMES = {
    "autoft.errors": (
        "AutoftError",
        "BackboneUnavailable",
        "DataError",
        "GateFailed",
        "Interrupted",
        "PluginError",
        "RunFailed",
        "RunFolderError",
        "StudyError",
        "UnreadableImage",
        "UserError",
    ),
    "autoft.parts.hookspecs": ("hookimpl",),
    "autoft.parts.linear_head": ("LinearHead",),
    "autoft.values.ledger": ("Ledger", "TrialRecord"),
    "autoft.parts.network": ("Network",),
    "autoft.parts.base": ("Adapter", "Exporter", "FreezeStrategy", "Problem", "Searcher", "Task", "Zoo"),
    "autoft.parts.metric": ("Metric",),
    "autoft.tasks.multi_label": ("MultiLabel",),
    "autoft.tasks.ordinal": ("Ordinal",),
    "autoft.tasks.regression": ("Regression",),
    "autoft.tasks.single_label": ("SingleLabel",),
    "autoft.values.target": ("MetricFacts", "Targets"),
    "autoft.values.bundle": ("Calibration",),
    "autoft.values.dataset": ("Imbalance",),
    "autoft.values.space": ("Choice", "Circumstances", "Dimension", "Float", "Int", "Params", "Scalar", "Space"),
    "autoft.values.backbone": ("Backbone", "InputSpec", "ParameterInfo", "Stage"),
    "autoft.values.handoff": ("Artifact", "Handoff", "Preprocess"),
    "autoft.values.plan": ("ClosedFormHead", "GradientHead", "ParameterGroup", "Plan", "Recipe"),
    "autoft.values.trial": ("DONE", "WAIT", "Candidate", "Clock", "Done", "Report", "Slice", "Trial", "Wait"),
    "autoft.api": ("resume", "search"),
    "autoft.builtin.searchers": ("Asha",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, from the module that declares it."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'autoft' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
