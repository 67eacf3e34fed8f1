"""`Resident`: decoded pixels on the device that trains, as long as they fit there."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import numpy as np
import torch
from torch import Tensor

from autoft.media.image.pixel_cache import PixelMap, take

MEMORY_SHARE: Final = 0.25
"""Of what is free on the device, for pixels: the rest is for networks, and for other workers on the same device."""

_ROWS_A_COPY: Final = 4096


class Resident:
    """Pixels by the file they come from; those not used for longest make room for others. Nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: OrderedDict[str, Tensor] = OrderedDict()

    def pixels(self, of: PixelMap) -> Tensor | None:
        """The same `(n, size, size, 3)` uint8 on the device; None where they do not fit."""
        name = str(of.filename)
        if self._device.type == "cpu" or not self._make_room(name, of.nbytes):
            return None
        if name not in self._held:
            try:
                self._held[name] = self._copied(of)
            except torch.OutOfMemoryError:  # another worker on the same device was quicker
                return None
        self._held.move_to_end(name)
        return self._held[name]

    def _copied(self, of: PixelMap) -> Tensor:
        copy = torch.empty(of.shape, dtype=torch.uint8, device=self._device)
        for start in range(0, len(of), _ROWS_A_COPY):
            rows = np.arange(start, min(start + _ROWS_A_COPY, len(of)))
            copy[start : start + len(rows)] = torch.from_numpy(take(of, rows))
        return copy

    def _make_room(self, name: str, size: int) -> bool:
        """Whether there is room for a file, if it is not held already."""
        if name in self._held:
            return True
        held = sum(tensor.nbytes for tensor in self._held.values())
        limit = MEMORY_SHARE * (_free(self._device) + held)
        if size > limit:
            return False
        while held + size > limit:
            held -= self._held.popitem(last=False)[1].nbytes
        return True


def _free(device: torch.device) -> int:
    """Bytes: the system's, and what torch keeps for later."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
