"""Hosts that know parts made in a test."""

from __future__ import annotations

from autoft import Searcher, hookimpl
from autoft.parts.host import Host
from autoft.parts.plugins import object_ref


def host_of(searcher: Searcher) -> Host:
    """One whose only plugin, `Offering`, has that searcher."""

    class Offering:
        @hookimpl
        def autoft_searchers(self) -> list[Searcher]:
            return [searcher]

    offering = Offering()
    return Host.from_refs([object_ref(offering)], [offering])
