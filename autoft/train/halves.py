"""Forward passes in as many parts as the memory of the device asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_halves(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What `forward` gives for images `(n, ...)`, in halves, and halves of those, where all at once do not fit.

    Raises `torch.OutOfMemoryError` when one alone does not.
    """
    try:
        return forward(images)
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    torch.cuda.empty_cache()
    return torch.cat([in_halves(forward, half) for half in images.tensor_split(2)])
