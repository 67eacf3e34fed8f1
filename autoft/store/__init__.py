"""The run folder: journal, checkpoints, lock and leaderboard. What is in it is all that resuming needs."""

from __future__ import annotations

from autoft.store.checkpoints import Checkpoint, CheckpointStore
from autoft.store.folder import RunFolder, unwritable
from autoft.store.journal import Journal
from autoft.store.leaderboard import LeaderboardRow, as_csv, leaderboard_rows, pareto_front, write_leaderboard

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "Journal",
    "LeaderboardRow",
    "RunFolder",
    "as_csv",
    "leaderboard_rows",
    "pareto_front",
    "unwritable",
    "write_leaderboard",
]
