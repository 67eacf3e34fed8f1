"""`Lazy`: a module that is imported when something in it is first asked for."""

from __future__ import annotations

import importlib
from typing import Any


class Lazy:
    """Stands for a module, so that a command that only names what uses it starts without it.

    Not importlib's `LazyLoader`, which puts a half-loaded module where another thread may import it.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        """What the module has under that name."""
        return getattr(importlib.import_module(self._name), attribute)
