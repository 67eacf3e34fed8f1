"""What a task must give: of a method's answer, and what was asked, why it cannot be used; None where it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, get_args

from autoft.parts.base import Task
from autoft.parts.linear_head import LinearHead
from autoft.system import faults
from autoft.values.codec import encode
from autoft.values.dataset import Imbalance
from autoft.values.plan import Balance

if TYPE_CHECKING:
    from torch import Tensor

NO_CLOSED_FORM: Final = "a task without a closed form says so in its class: closed_form = Task.closed_form"


def names_problem(task: Task, names: object, *asked: object) -> str | None:
    """A tuple of texts, one at least, each once."""
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        return f"it gives {faults.shown(names)}; give a tuple of texts, as ('one', 'two') or ('one',)"
    return None if names and len(set(names)) == len(names) else f"names must be distinct, and one at least, not {names}"


def targets_problem(task: Task, encoded: Any, labels: Sequence[str]) -> str | None:
    """Of "one_of" class indices int64 `(n,)`, of other forms float32 `(n, names)`; nothing is asked of no labels."""
    import numpy as np

    n, names = len(labels), len(task.targets.names)
    if not isinstance(encoded, np.ndarray):
        return f"it gives {faults.shown(encoded)}, not an array of numpy"
    of_classes = task.form == "one_of"
    kind, shape = ("int64", (n,)) if of_classes else ("float32", (n, names))
    if n and (encoded.dtype != kind or encoded.shape != shape):
        wanted = f"{kind} {'(n,), class indices,' if of_classes else '(n, names)'}"
        asked = f"for {n} labels and the {names} of names()"
        return (
            f"it gives {encoded.dtype} {encoded.shape}; of the form {task.form!r} targets are {wanted} {asked} {shape}"
        )
    if of_classes and n and not 0 <= encoded.min() <= encoded.max() < names:
        return f"it gives classes from {encoded.min()} to {encoded.max()}; of {names} names they are 0 to {names - 1}"
    return None if np.isfinite(encoded).all() else "it gives what is not finite"


def loss_problem(task: Task, loss: Any, *asked: object) -> str | None:
    """A scalar; whether it is finite goes by the network too."""
    import torch

    if not isinstance(loss, torch.Tensor):
        return f"it gives {faults.shown(loss)}, not a scalar of torch"
    return f"it gives a loss of shape {tuple(loss.shape)}; take the mean, .mean()" if loss.ndim else None


def head_problem(task: Task, head: Any, features: Tensor, *asked: object) -> str | None:
    """A `LinearHead` of finite float32, `weight` `(outputs, dim)` and `bias` `(outputs,)`."""
    import torch

    if head is None:
        return f"it gives no head; {NO_CLOSED_FORM}"
    if not isinstance(head, LinearHead):
        return f"it gives {faults.shown(head)}, not an autoft.LinearHead(weight, bias, facts)"
    outputs, dim = task.outputs, features.shape[1]
    for name, found, shape in (("weight", head.weight, (outputs, dim)), ("bias", head.bias, (outputs,))):
        if not isinstance(found, torch.Tensor):
            return f"the {name} of its head is {faults.shown(found)}, not a tensor"
        if (found.dtype, tuple(found.shape)) != (torch.float32, shape):
            wanted = f"for {outputs} outputs of {dim} features it is torch.float32 {shape}"
            return f"the {name} of its head is {found.dtype} {tuple(found.shape)}; {wanted}"
        if not bool(found.isfinite().all()):
            return f"the {name} of its head is not finite"
    return None


def imbalance_problem(task: Task, found: object, *asked: object) -> str | None:
    """None where classes are even, or an `Imbalance`."""
    if found is None:
        return None
    if not isinstance(found, Imbalance):
        return f"it gives {faults.shown(found)}; give None or an autoft.Imbalance(common, most, rare, fewest)"
    try:
        encode(found)
    except ValueError as problem:
        return str(problem)
    return None


def balances_problem(task: Task) -> str | None:
    """Of the form "one_of" a tuple of what a `Recipe` can do for rare classes; of other forms an empty one."""
    given, known = task.balances, [name for name in get_args(Balance) if name not in ("auto", "none")]
    if not isinstance(given, tuple | list) or not all(name in known for name in given):
        listed = ", ".join(map(repr, known))
        return f"`balances` says what training may do for rare classes, a tuple of {listed}, not {faults.shown(given)}"
    if given and task.form != "one_of":
        return f"`balances` are of classes, and there are none in the form {task.form!r}"
    return None


PROBLEMS: Final[Mapping[str, Callable[..., str | None]]] = {
    "names": names_problem,
    "encode": targets_problem,
    "loss": loss_problem,
    "closed_form": head_problem,
    "imbalance": imbalance_problem,
}
"""By method: of the task, what it gave, and what it was asked."""
