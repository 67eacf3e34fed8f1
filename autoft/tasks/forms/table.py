"""The forms by name. Imported wherever a bundle is read, so that light modules only are behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from autoft.parts.base import UNCALIBRATED, Task
from autoft.tasks.forms.any_of import AnyOf
from autoft.tasks.forms.base import AnswerForm, Answering
from autoft.tasks.forms.numbers import Numbers
from autoft.tasks.forms.one_of import OneOf
from autoft.values.bundle import Calibration
from autoft.values.target import Form

FORMS: Final[Mapping[Form, AnswerForm]] = {form.name: form for form in (OneOf(), AnyOf(), Numbers())}


def answering(task: Task, calibration: Calibration = UNCALIBRATED) -> Answering:
    """How outputs become answers, by a task that is bound to its targets."""
    return Answering(task, FORMS[task.form], calibration)
