"""`Worker`: executes slices of trials, in whatever process a runner puts it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from autoft.errors import RunFolderError
from autoft.parts.host import Host
from autoft.parts.plugins import PluginRef
from autoft.study.run import Run
from autoft.system.signals import Cancelled
from autoft.train.by_gradient import fit_by_gradient
from autoft.train.closed_form import fit_closed_form
from autoft.train.job import Job, TooLate
from autoft.train.refit import held_against_its_twin
from autoft.train.workshop import Bench, Workshop, release_memory
from autoft.values.counts import passes
from autoft.values.plan import Fit, GradientHead, Plan
from autoft.values.space import Device, Scalar
from autoft.values.trial import Report

FITS: Final[Mapping[Fit, Callable[[Bench], Report]]] = {
    "closed_form": fit_closed_form,
    "gradient": fit_by_gradient,
}


@dataclass(frozen=True)
class Worker:
    """Executes slices with what is in the `shop`."""

    shop: Workshop

    @classmethod
    def open(
        cls,
        run: Path,
        threads: int,
        device: Device,
        plugins: Iterable[PluginRef],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Worker:
        """A worker over a run folder, in a process of its own.

        `device` is this machine's, not the one recorded; `plugins` are those that the driver has. Raises `PluginError`
        when they cannot be had here just as they are there.
        """
        torch.set_num_threads(threads)
        opened, host = Run.open(run).on(device), Host.from_refs(plugins)
        host.errors = opened.folder.errors
        return cls(Workshop(opened, host, cancelled))

    def run(self, job: Job) -> Report:
        """Execute one slice. A failure is a report that names the cause, never an exception.

        A slice whose deadline passes before its first step, or before the features that a probe must have are there, is
        given back: paused where it was, without a score; the report says why. Only where the run has no model at all
        yet, such features are waited for. Raises `Cancelled` when the run is being stopped, `RunFolderError` when
        nothing can be written any more or the weights of the backbone have changed: that is no fault of the trial,
        whose slice stays open.
        """
        began = time.monotonic()
        with torch.random.fork_rng(devices=[]):
            try:
                bench = self.shop.bench(job)
                report = FITS[bench.plan.fit](bench)
                report = replace(report, facts={**_rates(bench.plan), **report.facts})
                if bench.trial.twin is not None:
                    report = held_against_its_twin(bench, report)
            except (Cancelled, RunFolderError):
                raise
            except TooLate as reason:
                report = Report(job.slice.trial.id, "paused", job.slice.start, None, 0.0, error=str(reason))
            except FloatingPointError as error:  # nobody raised it in vain: it was what the network gave
                cause = f"backbone {job.slice.trial.backbone}: {self.shop.fault(error)}"
                report = Report(job.slice.trial.id, "failed", job.slice.start, None, 0.0, error=cause)
            except Exception as error:
                cause = self.shop.fault(error)
                report = Report(job.slice.trial.id, "failed", job.slice.start, None, 0.0, error=cause)
        release_memory()
        return _sound(replace(report, seconds=time.monotonic() - began))


def _rates(plan: Plan) -> dict[str, Scalar]:
    """What a strategy made of the parameters: the greatest rate of the groups, the head's, the batch size, and what
    moves the weights; a schedule that comes to an end with the passes at which it does.
    """
    if not isinstance(plan.head, GradientHead):
        return {}
    rates, recipe = [group.learning_rate for group in plan.groups], plan.recipe
    facts: dict[str, Scalar] = {"head_learning_rate": plan.head.learning_rate, "batch_size": recipe.batch_size}
    facts |= {"optimizer": recipe.optimizer, "schedule": recipe.schedule}
    if recipe.schedule != "constant":
        facts["schedule"] = f"{recipe.schedule} over {passes(recipe.passes)}"
    return {"learning_rate": max(rates), **facts} if rates else facts


def _sound(report: Report) -> Report:
    """The report, or a failure in its place when its score is no finite number: such a trial must never be best."""
    if report.score is None or math.isfinite(report.score):
        return report
    cause = f"the validation score is {report.score}"
    return Report(report.trial, "failed", report.step, None, report.seconds, error=cause)
