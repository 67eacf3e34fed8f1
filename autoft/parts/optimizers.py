"""The optimisers that a recipe may name: those of timm that need no other package and whose memory can be kept."""

from __future__ import annotations

from typing import Final

USUAL: Final = "adamw"

_DRAWS_BY_ITSELF: Final = "kron"
"""It keeps lists, and random numbers of its own: a trial that paused would go on as another one."""


def names() -> frozenset[str]:
    """Names for `timm.optim.create_optimizer_v2`; not those that want second derivatives."""
    from timm.optim import get_optimizer_info, list_optimizers  # type: ignore[attr-defined]

    listed: list[str] = list_optimizers()  # type: ignore[assignment]  # without descriptions
    infos = {name: get_optimizer_info(name) for name in listed}
    return frozenset(
        name
        for name, info in infos.items()
        if not isinstance(info.opt_class, str) and not info.second_order and not name.startswith(_DRAWS_BY_ITSELF)
    )


def is_known(name: str) -> bool:
    """Whether a recipe may name it; of the usual one timm is not asked."""
    return name == USUAL or name in names()
