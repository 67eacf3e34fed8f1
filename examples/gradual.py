"""A freeze strategy of one's own: gradual unfreezing (Howard and Ruder 2018, arXiv 1801.06146).

    autoft search examples/fashion -p examples/gradual.py --freeze probe,gradual --time 2m

The head trains from the start with the stage nearest to it; the stages below thaw one after the other, the last of them
after `thawed_by` passes. Until then they cost no backward pass.
"""

from __future__ import annotations

from autoft import Float, FreezeStrategy, GradientHead, ParameterGroup, Params, Plan, Recipe, Space, Stage, hookimpl


class Gradual(FreezeStrategy):
    """Stages begin to train one after the other, from head to input."""

    name = "gradual"
    summary = "stages thaw one after the other, from head to input"

    def space(self) -> Space:
        """The learning rate, and after how many passes everything trains."""
        dimensions = {"learning_rate": Float(5e-5, 3e-3, log=True), "thawed_by": Float(0.5, 6.0)}
        return Space(dimensions, starts=({"learning_rate": 5e-4, "thawed_by": 2.0},))

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """A group a stage, each beginning as long after the one above it."""
        rate = float(params["learning_rate"])
        apart = float(params["thawed_by"]) / max(1, len(stages) - 1)
        groups = tuple(
            ParameterGroup(tuple(one.name for one in stage.parameters), rate * 0.8**distance, 0.05, distance * apart)
            for distance, stage in enumerate(reversed(stages))
        )
        return Plan(groups, GradientHead(10 * rate, 0.05), recipe=Recipe(augment="none"))


@hookimpl
def autoft_freeze_strategies() -> list[FreezeStrategy]:
    """The one strategy."""
    return [Gradual()]
