"""What a process sees to before anything heavy is imported."""

from __future__ import annotations

import os
import sys

from autoft.errors import UserError

# Each of them is a person's own decision: the standard's variable, and those of GNU's and LLVM's libraries.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def prepare() -> None:
    """Let torch's threads, in workers too, sleep while they wait; spinning takes cores from whoever has work.

    To be called before torch is imported. Raises `UserError` on Windows.
    """
    if sys.platform == "win32":
        raise UserError("autoft runs on Linux and macOS; on Windows use WSL 2 (exported bundles need onnxruntime only)")
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"
