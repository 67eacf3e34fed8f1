"""Pooled features of a frozen backbone: one forward pass an image, kept on disk for every worker and every trial."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoft.files import write_atomic_bytes
from autoft.network import Network
from autoft.train.images import Images
from autoft.types import View


@dataclass(frozen=True, eq=False)
class FeatureCache:
    """Features `(rows, dim)` float32 under `folder`, addressed by weights, pixels and rows.

    The pixels are known by the data's `fingerprint`, the `view`, their size and the backbone's interpolation.
    """

    folder: Path
    fingerprint: str
    view: View

    def features(
        self, network: Network, images: Images, rows: np.ndarray, check: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Features `(len(rows), dim)` on the CPU, computed when nobody did before; `check` may raise to give up."""
        path = self.folder / f"{self._key(network, images, rows)}.npy"
        if path.exists():
            return torch.from_numpy(np.load(path))
        parts = []
        with torch.inference_mode():
            for batch in images.batches(rows):
                check()
                parts.append(network.features(batch).float().cpu())
        features = torch.cat(parts)
        with suppress(OSError):  # a cache that cannot be written costs time, not the trial
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic_bytes(path, lambda file: np.save(file, features.numpy()))
        return features

    def _key(self, network: Network, images: Images, rows: np.ndarray) -> str:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(
            f"{self.fingerprint} {self.view} {images.pixels.shape} {images.spec} {images.device.type}".encode()
        )
        digest.update(rows.tobytes())
        for name, tensor in network.module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        # Weights alone do not make features: the same ones under another forward must not find the old file.
        with torch.inference_mode():
            sample = network.features(next(images.batches(rows[:2]))).float().cpu()
        digest.update(np.round(sample.numpy(), 2).tobytes())
        return digest.hexdigest()
