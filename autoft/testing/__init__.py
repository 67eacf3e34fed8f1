"""Conformance checks for every kind of part; the built-ins pass the same ones.

In a test file, subclass the one for your part and say which part it is:

    from autoft.testing import FreezeStrategyConformance

    class TestMine(FreezeStrategyConformance):
        def part(self):
            return MyStrategy()

pytest then runs the checks. A failure says what to change.
"""

from __future__ import annotations

from autoft.testing.exporters import ExporterConformance
from autoft.testing.freeze import FreezeStrategyConformance, layouts
from autoft.testing.metrics import MetricConformance
from autoft.testing.searchers import SearcherConformance
from autoft.testing.simulation import Simulation, candidates, simulate
from autoft.testing.tasks import TaskConformance
from autoft.testing.zoos import ZooConformance

__all__ = [
    "ExporterConformance",
    "FreezeStrategyConformance",
    "MetricConformance",
    "SearcherConformance",
    "Simulation",
    "TaskConformance",
    "ZooConformance",
    "candidates",
    "layouts",
    "simulate",
]
