"""The freeze strategies autoft comes with: what of a backbone trains, and at which learning rate.

Stages are ordered from input to head, for a timm model as for anyone's own module: no strategy knows an
architecture.

The parameter `learning_rate` is the rate at `RATED_BATCH` images a step. At another batch size everything trains at
that times the root of the ratio, the scaling rule of adaptive optimisers (Malladi et al. 2022, arXiv 2205.10782), so
that a rate means the same at every batch size. Only the rate is scaled: AdamW's moments decay as ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

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

LAYER_DECAYS = (0.6, 0.8, 1.0)
BLOCKS = ("first", "middle", "last")

RATED_BATCH = 32
# On a CPU a larger batch is no faster. On a GPU a step of a small network takes as long for 128 images as for 32.
BATCH_SIZES = {"cpu": (16, 32), "cuda": (16, 32, 64, 128, 256)}
SEARCHED_SIZES = 3
# With four steps a pass the scaled rate is too much, with nine it is not (benchmarks/batch_size.py).
FEWEST_STEPS = 8

T = TypeVar("T")


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
            "layer_decay": Choice(LAYER_DECAYS),
            **_dimensions(circumstances),
        }
        start: dict[str, Scalar] = {"learning_rate": 5e-4, "layer_decay": 0.8, **_start(circumstances)}
        return Space(
            dimensions, starts=(start, {**start, "learning_rate": 2e-4, "layer_decay": 1.0, "augment": "crop"})
        )

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """One pair of groups a stage: weights with weight decay, biases and norms without."""
        rate = _rate(params)
        return _plan(_by_stage(stages, rate, params), rate, params)


class Surgical(ByGradient):
    """One block of neighbouring stages trains: the first third, the middle or the last one, whichever shift there is.

    Surgical fine-tuning (Lee et al. 2023, arXiv 2210.11466): the first block where images look different from those of
    pretraining, the last where other things are asked of them.
    """

    name = "surgical"
    summary = "the first, middle or last third of the stages trains"
    by_default = False

    def space_for(self, circumstances: Circumstances) -> Space:
        """Which block, the learning rate, and the common training dimensions; each block is a start."""
        dimensions: dict[str, Dimension] = {
            "block": Choice(BLOCKS),
            "learning_rate": Float(1e-4, 3e-3, log=True),
            **_dimensions(circumstances),
        }
        start: dict[str, Scalar] = {"learning_rate": 5e-4, **_start(circumstances)}
        return Space(dimensions, starts=tuple({"block": block, **start} for block in BLOCKS))

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """The block at one learning rate. Of fewer than three stages some blocks are the same one."""
        rate, place = _rate(params), BLOCKS.index(str(params["block"]))
        first, end = (len(stages) * bound // len(BLOCKS) for bound in (place, place + 1))
        trained = stages[first : max(first + 1, end)]
        return _plan(_split_decay(_parameters(trained), rate, params), rate, params)


class Gradual(ByGradient):
    """Stages begin to train one after the other, from head to input, each `layer_decay` times slower than that before.

    Gradual unfreezing (Howard and Ruder 2018, arXiv 1801.06146); with few stages and `thawed_by` 1 it is what fastai's
    `fine_tune` does. What has not begun costs no backward pass.
    """

    name = "gradual"
    summary = "stages thaw one after the other, from head to input"
    by_default = False

    def space_for(self, circumstances: Circumstances) -> Space:
        """As of `full`, and after how many passes everything trains."""
        full = Full().space_for(circumstances)
        dimensions: dict[str, Dimension] = {**full.dimensions, "thawed_by": Float(0.5, 6.0)}
        return Space(dimensions, starts=({**full.starts[0], "thawed_by": 2.0},))

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """One pair of groups a stage, that of the input beginning after `thawed_by` passes and the others evenly."""
        rate, apart = _rate(params), float(params["thawed_by"]) / max(1, len(stages) - 1)
        return _plan(_by_stage(stages, rate, params, apart), rate, params)


class LpFt(ByGradient):
    """Everything trains, from the probe's head on, which has a small rate of its own (Kumar et al. 2022, 2202.10054).

    The head is the shrunk one, in closed form. One that was trained to the end has large weights, and so have the
    gradients behind it: at a rate of 1e-3 that left .18 of the accuracy where heads of zeros reached .96 (digits). Nor
    is the start better in general, so this is one more trial of a race.
    """

    name = "lp_ft"
    summary = "everything trains, from the probe's head on"
    by_default = False

    def space_for(self, circumstances: Circumstances) -> Space:
        """Both rates, the decay from stage to stage, and the common training dimensions without the head's start."""
        dimensions: dict[str, Dimension] = {
            "learning_rate": Float(1e-5, 3e-4, log=True),
            "head_learning_rate": Float(1e-5, 3e-4, log=True),
            "layer_decay": Choice(LAYER_DECAYS),
            **_without_init(_dimensions(circumstances)),
        }
        start: dict[str, Scalar] = {"layer_decay": 1.0, **_without_init(_start(circumstances))}
        rates = ({"learning_rate": rate, "head_learning_rate": rate} for rate in (1e-4, 3e-5))
        return Space(dimensions, starts=tuple({**start, **both} for both in rates))

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """As of `full`, with the head at its own rate."""
        groups = _by_stage(stages, _rate(params), params)
        head = GradientHead(_rate(params, "head_learning_rate"), float(params["weight_decay"]), "ridge")
        return Plan(tuple(groups), head, recipe=_recipe(params))


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
    # From a head on every stage fine-tunes are ahead for some passes and no worse later; on the last, zeros do better.
    init = "ridge" if circumstances.features_of == "every stage" else "zero"
    largest = batch_sizes(circumstances)[-1]
    start: dict[str, Scalar] = {"head_init": init, "weight_decay": 0.05, "augment": "none", "batch_size": largest}
    return start | ({"balance": circumstances.balances[0]} if circumstances.balances else {})


def _without_init(of: Mapping[str, T]) -> dict[str, T]:
    return {name: one for name, one in of.items() if name != "head_init"}


def _rate(params: Params, of: str = "learning_rate") -> float:
    """The rate at which the stage nearest the head trains, or what else has one: given is that of `RATED_BATCH`."""
    return float(params[of]) * math.sqrt(int(params["batch_size"]) / RATED_BATCH)


def _parameters(stages: Iterable[Stage]) -> tuple[ParameterInfo, ...]:
    return tuple(info for stage in stages for info in stage.parameters)


def _split_decay(infos: tuple[ParameterInfo, ...], rate: float, params: Params) -> list[ParameterGroup]:
    """Weight decay is for weights: on norms and biases it only shrinks what carries no risk of overfitting."""
    weights = tuple(info.name for info in infos if info.role == "weight")
    others = tuple(info.name for info in infos if info.role != "weight")
    groups = [ParameterGroup(weights, rate, float(params["weight_decay"])), ParameterGroup(others, rate)]
    return [group for group in groups if group.names]


def _by_stage(stages: tuple[Stage, ...], rate: float, params: Params, apart: float = 0.0) -> list[ParameterGroup]:
    """Everything; each stage `layer_decay` times slower than the next one to the head, and `apart` passes later."""
    decay = float(params["layer_decay"])
    return [
        replace(group, from_pass=distance * apart)
        for distance, stage in enumerate(reversed(stages))
        for group in _split_decay(stage.parameters, rate * decay**distance, params)
    ]


def _recipe(params: Params) -> Recipe:
    augment, balance = params["augment"], params.get("balance", "auto")
    return Recipe(batch_size=int(params["batch_size"]), augment=augment, balance=balance)  # type: ignore[arg-type]


def _plan(groups: list[ParameterGroup], rate: float, params: Params) -> Plan:
    init = str(params["head_init"])
    head = GradientHead(
        rate * HEAD_SPEED_UP[init], float(params["weight_decay"]), "ridge" if init == "ridge" else "zero"
    )
    return Plan(tuple(group for group in groups if group.names), head, recipe=_recipe(params))


@hookimpl
def autoft_freeze_strategies() -> list[FreezeStrategy]:
    """The built-in strategies, in the order in which a searcher without other knowledge should try them."""
    return [Probe(), Full(), LastStages(), BiasNorm(), LpFt(), Surgical(), Gradual()]
