"""GPUs shared by measurement, on a cluster of logical ones; prints what came of it as JSON.

The search and the worker are stand-ins; runner, Tune, processes and what they see of GPUs are real.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from autoft import DONE, WAIT, Ledger, Report, Slice, Trial
from autoft.parts.host import Host
from autoft.runners import ray as subject
from autoft.runners.base import Site
from autoft.study.record import Machine
from autoft.system.screen import Silent
from autoft.values.trial import Costs

GPUS, MOST, SLICES, LEFT = 2, 2, 40, 3  # when the `LEFT`th has ended, some worker gives up its seat
STEPS, STEP_SECONDS = 10, 0.08


class Worker(subject._SliceTrainable):
    """Notes the GPU that its process sees and who else is on it; on a "full" one all share the pace of one."""

    def _execute(self, errand):
        self._worker, number = self, errand.slice.trial.id
        visible = os.environ["CUDA_VISIBLE_DEVICES"]
        mine = RUN / f"{visible}.{os.getpid()}.busy"
        mine.touch()
        time.sleep(STEPS * STEP_SECONDS / 2)
        together = len(list(RUN.glob(f"{visible}.*.busy")))
        step = STEP_SECONDS * (together if errand.slice.trial.freeze == "full" else 1)
        time.sleep(STEPS * (step - STEP_SECONDS / 2))
        mine.unlink()
        (RUN / f"{number}.json").write_text(json.dumps([number, os.getpid(), visible, together]))
        facts = {"reserved_gpu_mib": 500, "others_gpu_mib": 300, "card_gpu_mib": 2700}
        costs = Costs(step, STEPS)
        return Report(number, "finished", 1.0, 0.5, STEPS * step, facts, costs=costs)

    def _gives_up_seat(self, errand):
        try:
            (RUN / "leave").rename(RUN / "left")
        except FileNotFoundError:
            return super()._gives_up_seat(errand)
        return True


class Notes(Silent):
    """Remembers them."""

    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


class Search:
    """Hands out slices as long as there are some."""

    def __init__(self, kind):
        self._kind = kind
        self.ledger, self.host, self.screen, self.deadline = Ledger(), Host.from_refs(()), Notes(), 1e6
        self._waiting, self._out = list(range(SLICES)), 0

    def ask(self):
        if self._waiting:
            self._out += 1
            return Slice(Trial(self._waiting.pop(0), "b", self._kind, 64, {}, 0), 0.0, 1.0, 1e6)
        return WAIT if self._out else DONE

    def began(self, trial):
        pass

    def left(self, slice_):
        pass

    def tell(self, report):
        assert report.error is None, report.error
        self._out -= 1
        if report.trial == LEFT:
            (RUN / "leave").touch()


RUN = Path(sys.argv[1])
subject._SliceTrainable = Worker
subject._import_worker = lambda: None
subject.ray.init(
    num_cpus=GPUS * MOST, num_gpus=GPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
)
runner = subject.RayRunner()
runner.warm_up(GPUS * MOST)
machine = Machine("ray", GPUS * MOST, 1, "cpu", 1.0, 1 / MOST, GPUS)
search = Search(sys.argv[2])
runner.run(search, Site(RUN, machine, time.time()), lambda: False)
slices = [json.loads(path.read_text()) for path in RUN.glob("*.json")]
found = {"slices": sorted(slices), "said": search.screen.lines, "left": len(list(RUN.glob("left")))}
sys.stdout.write(json.dumps(found))
sys.stdout.flush()
os._exit(0)
