"""The freeze strategies autoft comes with: what of a backbone trains, and at which learning rate.

Stages are ordered from input to head, for a timm model as for anyone's own module: no strategy knows an
architecture.
"""

from __future__ import annotations

from collections.abc import Iterable

from autoft import (
    Choice,
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

TRAINING: dict[str, Dimension] = {
    "head_init": Choice(("zero", "ridge")),
    "weight_decay": Choice((0.0, 0.05)),
    "augment": Choice(("none", "crop", "crop_flip")),
    "batch_size": Choice((16, 32)),
}
START: dict[str, Scalar] = {"head_init": "zero", "weight_decay": 0.05, "augment": "none", "batch_size": 32}


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


class LastStages(FreezeStrategy):
    """The last `stages` stages train, counted from the head."""

    name = "last_stages"
    summary = "the k stages nearest the head train"

    def space(self) -> Space:
        """How many stages, the learning rate, and the common training dimensions."""
        dimensions: dict[str, Dimension] = {
            "stages": Int(1, 4),
            "learning_rate": Float(1e-4, 3e-3, log=True),
            **TRAINING,
        }
        return Space(dimensions, starts=({"stages": 3, "learning_rate": 5e-4, **START},))

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """The last stages at one learning rate; all of them when there are fewer."""
        trained = stages[-int(params["stages"]) :]
        rate = float(params["learning_rate"])
        return _plan(_split_decay(_parameters(trained), rate, params), rate, params)


class BiasNorm(FreezeStrategy):
    """Biases and normalisation scales train, everywhere (BitFit, arXiv 2106.10199; LN-tuning, arXiv 2304.01917)."""

    name = "bias_norm"
    summary = "biases and norms train, everywhere"

    def space(self) -> Space:
        """The learning rate, and the common training dimensions."""
        dimensions: dict[str, Dimension] = {"learning_rate": Float(5e-4, 2e-2, log=True), **TRAINING}
        return Space(dimensions, starts=({"learning_rate": 5e-3, **START},))

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """Every bias and norm at one learning rate, without weight decay."""
        rate = float(params["learning_rate"])
        names = tuple(info.name for info in _parameters(stages) if info.role != "weight")
        return _plan([ParameterGroup(names, rate)], rate, params)


class Full(FreezeStrategy):
    """Everything trains, each stage `layer_decay` times slower than the next one towards the head.

    Layer-wise learning-rate decay: Howard and Ruder 2018 (arXiv 1801.06146), Clark et al. 2020 (arXiv 2003.10555).
    """

    name = "full"
    summary = "everything trains, slower towards the input"

    def space(self) -> Space:
        """The learning rate, its decay from stage to stage, and the common training dimensions."""
        dimensions: dict[str, Dimension] = {
            "learning_rate": Float(5e-5, 3e-3, log=True),
            "layer_decay": Choice((0.6, 0.8, 1.0)),
            **TRAINING,
        }
        start: dict[str, Scalar] = {"learning_rate": 5e-4, "layer_decay": 0.8, **START}
        return Space(
            dimensions, starts=(start, {**start, "learning_rate": 2e-4, "layer_decay": 1.0, "augment": "crop"})
        )

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """One pair of groups a stage: weights with weight decay, biases and norms without."""
        rate, decay = float(params["learning_rate"]), float(params["layer_decay"])
        groups = [
            group
            for distance, stage in enumerate(reversed(stages))
            for group in _split_decay(stage.parameters, rate * decay**distance, params)
        ]
        return _plan(groups, rate, params)


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
    recipe = Recipe(batch_size=int(params["batch_size"]), augment=str(params["augment"]))  # type: ignore[arg-type]
    return Plan(tuple(group for group in groups if group.names), head, recipe=recipe)


@hookimpl
def autoft_freeze_strategies() -> list[FreezeStrategy]:
    """The built-in strategies, in the order in which a searcher without other knowledge should try them."""
    return [Probe(), Full(), LastStages(), BiasNorm()]
