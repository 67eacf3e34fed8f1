"""The freeze strategies autoft comes with: what of a backbone trains, and at which learning rate.

Stages are ordered from input to head, for a timm model as for anyone's own module: no strategy knows an
architecture.

The parameter `learning_rate` is the rate at `RATED_BATCH` images a step. At another batch size everything trains at
that times the root of the ratio, the scaling rule of adaptive optimisers (Malladi et al. 2022, arXiv 2205.10782), so
that a rate means the same at every batch size. Only the rate is scaled: AdamW's moments decay as ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from autoft import (
    Choice,
    Circumstances,
    ClosedFormHead,
    Dimension,
    Float,
    FreezeStrategy,
    GradientHead,
    Int,
    ParameterGroup,
    ParameterInfo,
    Params,
    Plan,
    Recipe,
    Scalar,
    Space,
    Stage,
    hookimpl,
)

# A head that starts from zeros has everything to learn and may go faster than the pretrained weights below it;
# one that starts from the ridge solution must not run away from it (Kumar et al. 2022, arXiv 2202.10054).
HEAD_SPEED_UP = {"zero": 10.0, "ridge": 1.0}

RATED_BATCH = 32
# On a CPU a larger batch is no faster. On a GPU a step of a small network takes as long for 128 images as for 32.
BATCH_SIZES = {"cpu": (16, 32), "cuda": (16, 32, 64, 128, 256)}
SEARCHED_SIZES = 3
# With four steps a pass the scaled rate is too much, with nine it is not (benchmarks/batch_size.py).
FEWEST_STEPS = 8


class ByGradient(FreezeStrategy):
    """What trains by gradient: beside its own dimensions it searches the head's start, decay, crops and batch size."""

    def space(self) -> Space:
        """As on a CPU."""
        return self.space_for(Circumstances())


class Probe(FreezeStrategy):
    """Nothing of the backbone trains; the head is the best of a ridge path on cached features."""

    name = "probe"
    summary = "frozen backbone, closed-form head on cached features"
    fit = "closed_form"

    def space(self) -> Space:
        """Empty: the ridge strength is chosen by leave-one-out inside the slice."""
        return Space({})

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """Nothing trains by gradient."""
        return Plan(groups=(), head=ClosedFormHead())


class LastStages(ByGradient):
    """The last `stages` stages train, counted from the head."""

    name = "last_stages"
    summary = "the k stages nearest the head train"

    def space_for(self, circumstances: Circumstances) -> Space:
        """How many stages, the learning rate, and the common training dimensions."""
        dimensions: dict[str, Dimension] = {
            "stages": Int(1, 4),
            "learning_rate": Float(1e-4, 3e-3, log=True),
            **_dimensions(circumstances),
        }
        return Space(dimensions, starts=({"stages": 3, "learning_rate": 5e-4, **_start(circumstances)},))

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """The last stages at one learning rate; all of them when there are fewer."""
        trained = stages[-int(params["stages"]) :]
        rate = _rate(params)
        return _plan(_split_decay(_parameters(trained), rate, params), rate, params)


class BiasNorm(ByGradient):
    """Biases and normalisation scales train, everywhere (BitFit, arXiv 2106.10199; LN-tuning, arXiv 2304.01917)."""

    name = "bias_norm"
    summary = "biases and norms train, everywhere"

    def space_for(self, circumstances: Circumstances) -> Space:
        """The learning rate, and the common training dimensions."""
        dimensions: dict[str, Dimension] = {"learning_rate": Float(5e-4, 2e-2, log=True), **_dimensions(circumstances)}
        return Space(dimensions, starts=({"learning_rate": 5e-3, **_start(circumstances)},))

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """Every bias and norm at one learning rate, without weight decay."""
        rate = _rate(params)
        names = tuple(info.name for info in _parameters(stages) if info.role != "weight")
        return _plan([ParameterGroup(names, rate)], rate, params)


class Full(ByGradient):
    """Everything trains, each stage `layer_decay` times slower than the next one towards the head.

    Layer-wise learning-rate decay: Howard and Ruder 2018 (arXiv 1801.06146), Clark et al. 2020 (arXiv 2003.10555).
    """

    name = "full"
    summary = "everything trains, slower towards the input"

    def space_for(self, circumstances: Circumstances) -> Space:
        """The learning rate, its decay from stage to stage, and the common training dimensions."""
        dimensions: dict[str, Dimension] = {
            "learning_rate": Float(5e-5, 3e-3, log=True),
            "layer_decay": Choice((0.6, 0.8, 1.0)),
            **_dimensions(circumstances),
        }
        start: dict[str, Scalar] = {"learning_rate": 5e-4, "layer_decay": 0.8, **_start(circumstances)}
        return Space(
            dimensions, starts=(start, {**start, "learning_rate": 2e-4, "layer_decay": 1.0, "augment": "crop"})
        )

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """One pair of groups a stage: weights with weight decay, biases and norms without."""
        rate, decay = _rate(params), float(params["layer_decay"])
        groups = [
            group
            for distance, stage in enumerate(reversed(stages))
            for group in _split_decay(stage.parameters, rate * decay**distance, params)
        ]
        return _plan(groups, rate, params)


def batch_sizes(circumstances: Circumstances) -> tuple[int, ...]:
    """The batch sizes to search, the best guess last: the largest few with which a pass has `FEWEST_STEPS`.

    On a CPU, and where there are few images, 16 and 32.
    """
    most = max(BATCH_SIZES["cpu"][-1], circumstances.images // FEWEST_STEPS)
    return tuple(size for size in BATCH_SIZES[circumstances.device] if size <= most)[-SEARCHED_SIZES:]


def _dimensions(circumstances: Circumstances) -> dict[str, Dimension]:
    return {
        "head_init": Choice(("zero", "ridge")),
        "weight_decay": Choice((0.0, 0.05)),
        "augment": Choice(("none", "crop", "crop_flip")),
        "batch_size": Choice(batch_sizes(circumstances)),
        **_balances(circumstances),
    }


def _balances(circumstances: Circumstances) -> dict[str, Dimension]:
    """What is done for rare classes, where that is to be decided."""
    return {"balance": Choice(("none", *circumstances.balances))} if circumstances.balances else {}


def _start(circumstances: Circumstances) -> dict[str, Scalar]:
    largest = batch_sizes(circumstances)[-1]
    start: dict[str, Scalar] = {"head_init": "zero", "weight_decay": 0.05, "augment": "none", "batch_size": largest}
    return start | ({"balance": circumstances.balances[0]} if circumstances.balances else {})


def _rate(params: Params) -> float:
    """The rate at which the stage nearest the head trains: `learning_rate` is that of `RATED_BATCH` images a step."""
    return float(params["learning_rate"]) * math.sqrt(int(params["batch_size"]) / RATED_BATCH)


def _parameters(stages: Iterable[Stage]) -> tuple[ParameterInfo, ...]:
    return tuple(info for stage in stages for info in stage.parameters)


def _split_decay(infos: tuple[ParameterInfo, ...], rate: float, params: Params) -> list[ParameterGroup]:
    """Weight decay is for weights: on norms and biases it only shrinks what carries no risk of overfitting."""
    weights = tuple(info.name for info in infos if info.role == "weight")
    others = tuple(info.name for info in infos if info.role != "weight")
    decayed = ParameterGroup(weights, rate, float(params["weight_decay"]))
    return [decayed, ParameterGroup(others, rate)]


def _plan(groups: list[ParameterGroup], rate: float, params: Params) -> Plan:
    init = str(params["head_init"])
    head = GradientHead(
        rate * HEAD_SPEED_UP[init], float(params["weight_decay"]), "ridge" if init == "ridge" else "zero"
    )
    augment, balance = params["augment"], params.get("balance", "none")
    recipe = Recipe(batch_size=int(params["batch_size"]), augment=augment, balance=balance)  # type: ignore[arg-type]
    return Plan(tuple(group for group in groups if group.names), head, recipe=recipe)


@hookimpl
def autoft_freeze_strategies() -> list[FreezeStrategy]:
    """The built-in strategies, in the order in which a searcher without other knowledge should try them."""
    return [Probe(), Full(), LastStages(), BiasNorm()]
