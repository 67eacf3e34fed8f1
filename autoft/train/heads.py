"""What the heads of a run see of a network."""

from __future__ import annotations

from autoft.parts.network import Network
from autoft.parts.taps import Taps
from autoft.values.space import FeaturesOf


def seen_by_heads(network: Network, features_of: FeaturesOf) -> Network:
    """The network that gives what heads see: itself, or one that gives what every stage comes to, as well."""
    return Taps.of(network).on(network) if features_of == "every stage" else network
