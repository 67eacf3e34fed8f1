"""A plugin that counts the CPU seconds of forward and backward passes in each process, into $FORWARD_BACKWARD/PID.json.

Besides them it writes the CPU seconds of the process from its first pass to the end of its latest one. A pass outside
torch, by onnxruntime for example, does not count.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from autoft import hookimpl


class Passes:
    """CPU seconds of all threads while some pass is under way; those within another are part of it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{os.getpid()}.json"
        self._depth, self._begun, self._spent = 0, 0.0, 0.0
        self._first: float | None = None

    def enter(self, *_: Any) -> None:
        """A module's forward, or a backward, begins."""
        if self._depth == 0:
            self._begun = time.process_time()
            self._first = self._begun if self._first is None else self._first
        self._depth += 1

    def leave(self, *_: Any) -> None:
        """It has ended."""
        self._depth -= 1
        if self._depth == 0:
            now = time.process_time()
            self._spent += now - self._begun
            figures = {"passes": self._spent, "all": now - (self._first or now)}
            self._path.write_text(json.dumps({**figures, "title": _title()}), encoding="utf-8")

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a pass."""

        def counted(*arguments: Any, **options: Any) -> Any:
            self.enter()
            try:
                return function(*arguments, **options)
            finally:
                self.leave()

        return counted


def _title() -> str:
    return Path("/proc/self/cmdline").read_bytes().decode(errors="replace").partition("\0")[0]


if "FORWARD_BACKWARD" in os.environ:
    passes = Passes(Path(os.environ["FORWARD_BACKWARD"]))
    register_module_forward_pre_hook(passes.enter)
    register_module_forward_hook(passes.leave, always_call=True)
    torch.autograd.backward = passes.around(torch.autograd.backward)


@hookimpl
def autoft_search_finished(summary: Any) -> None:
    """Nothing: being imported is all that this plugin does."""
