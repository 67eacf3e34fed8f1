"""How long exported networks take for one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoft.values.counts import milliseconds
from autoft.values.trial import Network


@dataclass(frozen=True)
class Latencies:
    """latencies.json: milliseconds an image of exported networks, by `network_name`, as measured on one `machine`."""

    machine: str
    measured: Mapping[str, float]


def network_name(network: Network) -> str:
    """BACKBONE@SIZE."""
    backbone, size = network
    return f"{backbone}@{size}"


def refusal(network: Network, takes: str, most: float) -> str:
    """Why a network that `takes` so long an image is not handed over, where `most` milliseconds are allowed."""
    backbone, size = network
    return f"{backbone} at {size} px {takes} an image here, above --max-latency {milliseconds(most).replace(' ', '')}"
