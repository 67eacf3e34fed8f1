"""The searchers autoft comes with: `halving`, the default, and what to compare it with. One module each.

`standing` is what they share: what of a ledger decides whether a trial may start or go on.
"""

from __future__ import annotations

from autoft import Searcher, hookimpl
from autoft.builtin.searchers.asha import Asha
from autoft.builtin.searchers.grid import Grid
from autoft.builtin.searchers.halving import Halving
from autoft.builtin.searchers.one_epoch import OneEpoch
from autoft.builtin.searchers.random_search import Random

__all__ = ["Asha", "Grid", "Halving", "OneEpoch", "Random", "autoft_searchers"]


@hookimpl
def autoft_searchers() -> list[Searcher]:
    """The built-in searchers."""
    return [Halving(), Asha(), Grid(), OneEpoch(), Random()]
