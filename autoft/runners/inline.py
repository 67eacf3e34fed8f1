"""The inline runner: one slice at a time, in this process. For tests, tiny runs and machines without ray."""

from __future__ import annotations

import torch

from autoft.errors import PluginError
from autoft.runners.base import Runner, Site
from autoft.runners.search import Search
from autoft.study.machine import Resources
from autoft.study.run import Run
from autoft.system.signals import Cancelled, StopFlag
from autoft.train.job import Job
from autoft.train.worker import Worker
from autoft.train.workshop import Workshop
from autoft.values.trial import Slice


class InlineRunner(Runner):
    """Runs slices in this process, with the plugins the search has, importable or not."""

    name = "inline"

    def __init__(self) -> None:
        self._cores = 1

    def warm_up(self, cores: int) -> None:
        """Nothing: all that takes long is needed by this process anyway."""
        self._cores = cores

    def nodes(self) -> tuple[Resources, ...]:
        """This machine."""
        return (Resources.here(self._cores),)

    def run(self, search: Search, site: Site, stopped: StopFlag) -> None:
        """Ask, begin, execute, tell."""
        run = Run.open(site.run).on(site.machine.device)
        torch.set_num_threads(site.machine.threads)
        worker = Worker(Workshop(run, search.host, stopped))
        while isinstance(answer := search.ask(), Slice):
            search.began(answer.trial.id)
            try:
                with stopped.at_once():  # loading weights asks nobody between its steps
                    report = worker.run(Job(answer, site.origin, search.ledger.allowance(answer.trial)))
            except (Cancelled, KeyboardInterrupt):
                if stopped():
                    return
                raise
            search.tell(report)
        if not stopped() and search.ledger.in_flight:
            raise PluginError("the searcher ended the search with a slice in flight; this is a bug in it")

    def close(self) -> None:
        """Nothing is held."""
