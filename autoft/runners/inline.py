"""The inline runner: one slice at a time, in this process. For tests, tiny runs and machines without ray."""

from __future__ import annotations

from collections.abc import Callable

from autoft.errors import PluginError
from autoft.runners.base import Runner, Site
from autoft.asking import Search
from autoft.train.worker import Cancelled, Job, Worker
from autoft.types import Slice


class InlineRunner(Runner):
    """Runs slices in this process, with `worker` or one it opens itself."""

    def __init__(self, worker: Worker | None = None) -> None:
        self._worker = worker

    def run(self, search: Search, site: Site, stopped: Callable[[], bool]) -> None:
        """Ask, execute, tell."""
        worker = self._worker or Worker.open(site.run, site.threads, stopped)
        while isinstance(answer := search.ask(), Slice):
            try:
                report = worker.run(Job(answer, site.origin))
            except Cancelled:
                return
            search.tell(report)
        if not stopped() and search.ledger.in_flight:
            raise PluginError("the searcher ended the search with a slice in flight; this is a bug in it")
