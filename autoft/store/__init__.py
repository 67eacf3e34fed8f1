"""The run folder: journal, checkpoints, lock and leaderboard. What is in it is all that resuming needs."""

from __future__ import annotations

from autoft.store.checkpoints import Checkpoint, CheckpointStore
from autoft.store.folder import RunFolder, unwritable
from autoft.store.journal import Journal
from autoft.store.leaderboard import LeaderboardRow, leaderboard_rows, write_leaderboard

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "Journal",
    "LeaderboardRow",
    "RunFolder",
    "leaderboard_rows",
    "unwritable",
    "write_leaderboard",
]
