"""Preparing the end of a run while it still searches: what has to be imported, and the graph of a backbone.

Following a network is most of what exporting costs, and the graph does not depend on the weights. `Preparation` has it
done beside the search for the backbone that leads; `conclude` then only puts the weights in. torch's exporter holds the
interpreter and redirects its output, so it cannot be a thread. Nothing here can end a search: what fails to be prepared
is exported at the end as if it had never been tried.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import math
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from autoft.parts.base import Exporter
from autoft.parts.host import Host
from autoft.parts.plugins import PluginRef, plugin_versions
from autoft.study.machine import versions
from autoft.study.run import Run
from autoft.study.study import CORE_EXPORTER
from autoft.system.starting import start_slowness
from autoft.values.backbone import Backbone
from autoft.values.codec import decode, encode
from autoft.values.ledger import Ledger
from autoft.values.trial import Candidate, Trial

# All seconds here are those of a machine of `start_slowness` 1.
FIRST_GUESS_SECONDS = 10.0
MARGIN = 1.3  # times what the last one took: the search has as many threads as there are cores
# With less time left nobody waits to see who leads: begun then, no graph would be there when the search has to end.
SHORT_SECONDS = 75.0
LITTLE_TIME_SECONDS = 30.0  # a whole run that has less would wait for its graph longer than it takes to export at once


def is_little(seconds: float) -> bool:
    """Whether a run of so many seconds has too little time for a graph to be prepared beside its search, here."""
    return seconds < start_slowness() * LITTLE_TIME_SECONDS


_IMPORTED_AT_THE_END = (
    "onnxruntime",
    "onnxscript.optimizer",
    "scipy.stats",
    "sklearn.model_selection",
)


def prepared_folder(run: Run, plugins: tuple[PluginRef, ...], backbone: str, image_size: int) -> Path:
    """Where what was prepared for a backbone at this size lies: RUN/.prepared/KEY, whether it is there or not.

    The key stands for everything a graph depends on: another torch, another plugin or a changed one finds nothing.
    """
    facts = (
        backbone,
        image_size,
        run.record.data.targets.task,
        run.record.features_of,
        len(run.record.data.targets.names),
        _surroundings(plugins),
    )
    return _folder(run) / hashlib.sha256(encode(facts).encode()).hexdigest()[:16]


@functools.cache
def _surroundings(plugins: tuple[PluginRef, ...]) -> str:
    return encode((versions(), plugin_versions(plugins)))


def _folder(run: Run) -> Path:
    return run.folder.path / ".prepared"


class Preparation:
    """Has the end of a run prepared in the background, one backbone at a time. `close` it with the search.

    Nothing in it raises, and nothing but `finish` waits longer than ending a process takes.
    """

    def __init__(self, run: Run, host: Host) -> None:
        self._run, self._host = run, host
        self._process: subprocess.Popen[bytes] | None = None
        self._began: dict[tuple[str, int], float] = {}
        self._took: float | None = None
        self._imports = threading.Thread(target=_import_ahead, name="imports", daemon=True)

    def import_ahead(self) -> None:
        """Begin, once, to import what the end of a run takes and its search does not."""
        if self._imports.ident is None:
            self._imports.start()

    def follow(self, ledger: Ledger, left: float, slowness: float) -> None:
        """Begin with the backbone that leads, once as many trials have a score as there are backbones.

        In a short time with the one that leads so far, or seems best before anything is tried; in little with none.
        Nor so late that it would not be there in the seconds that are `left` to search: a process that has its imports
        exports at once sooner than that.
        """
        record, winner = self._run.record, ledger.winner
        if is_little(record.study.time) or left < self.expected(slowness):
            return
        if len(ledger.ranking()) >= len(record.backbones) or left < start_slowness() * SHORT_SECONDS:
            trainable = self._run.trainable(self._host)
            open_to_all = (one for one in trainable if one.network not in ledger.barred)
            likely = max(open_to_all, key=lambda candidate: candidate.prior or 0.0, default=None)
            leading: Trial | Candidate | None = winner.trial if winner else likely
            if leading:
                self.begin(leading.backbone, leading.image_size)

    def begin(self, backbone: str, image_size: int) -> None:
        """Begin with this backbone, once; while another one is being prepared, nothing: so call it again and again."""
        if self._busy() or (backbone, image_size) in self._began or self._is_ready(backbone, image_size):
            return
        self._began[backbone, image_size] = time.time()
        errand = encode(_Errand(str(self._run.folder.path), self._host.refs, backbone, image_size))
        command = [sys.executable, "-m", "autoft.engine.prepare", errand]
        # One thread, no GPU, and no signals that are meant for the search.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        silent = subprocess.DEVNULL
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                command, stdin=silent, stdout=silent, stderr=silent, env=environment, start_new_session=True
            )

    @property
    def begun(self) -> tuple[str, int] | None:
        """The backbone and size that was begun last."""
        return next(reversed(self._began), None)

    def expected(self, slowness: float) -> float:
        """Seconds in which a backbone is prepared: by what the last one took, or was measured with `slowness` 1."""
        return slowness * FIRST_GUESS_SECONDS if self._took is None else MARGIN * self._took

    def ready_in(self, backbone: str, image_size: int, slowness: float) -> float:
        """Seconds until this backbone is prepared: none when it is, infinitely many when nobody is at it.

        One that takes longer than `expected` may take as much longer again.
        """
        if self._is_ready(backbone, image_size):
            return 0.0
        if not self._busy() or self.begun != (backbone, image_size):
            return math.inf
        return abs(self.expected(slowness) - (time.time() - self._began[backbone, image_size]))

    def finish(self, backbone: str, image_size: int, without: float, slowness: float) -> None:
        """Wait for this backbone where that is sooner over than to export `without`; end what is not there then."""
        if 0.0 < self.ready_in(backbone, image_size, slowness) <= without and self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(without)
        self._end()

    def close(self) -> None:
        """End what is still being prepared; what is finished stays."""
        self._end()
        if self._imports.ident is not None:
            self._imports.join()  # one that is still importing when Python ends crashes it

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _busy(self) -> bool:
        """Whether a backbone is being prepared; when one has ended since, remember what it took."""
        if self._process is None:
            return False
        if self._process.poll() is None:
            return True
        (backbone, image_size), began = list(self._began.items())[-1]
        if self._is_ready(backbone, image_size):
            self._took = prepared_folder(self._run, self._host.refs, backbone, image_size).stat().st_mtime - began
        self._process = None
        return False

    def _is_ready(self, backbone: str, image_size: int) -> bool:
        return prepared_folder(self._run, self._host.refs, backbone, image_size).exists()


@dataclass(frozen=True)
class _Errand:
    """What the process in the background is told, as JSON."""

    run: str
    plugins: tuple[PluginRef, ...]
    backbone: str
    image_size: int


def prepare(run: Run, host: Host, backbone: Backbone, image_size: int) -> None:
    """Have the exporter of the core prepare for the backbone. Raises whatever the zoo or the exporter raises."""
    import torch

    from autoft.train.classifier import Classifier
    from autoft.train.heads import seen_by_heads

    torch.set_num_threads(1)
    for left in _folder(run).glob(".*"):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)
    folder = prepared_folder(run, host.refs, backbone.name, image_size)
    if folder.exists():  # by an earlier process of this run
        return
    network = seen_by_heads(host.build(backbone), run.record.features_of)
    classifier = Classifier.of(network, run.task(host).outputs)
    # From a head of zeros nobody could tell whether a network made easier to follow still gives the same.
    torch.nn.init.normal_(classifier.head.weight)
    fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    fresh.parent.mkdir(exist_ok=True)
    fresh.mkdir()
    try:
        host.part(Exporter, CORE_EXPORTER).prepare(classifier, image_size, fresh)
        if any(fresh.iterdir()):
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _import_ahead() -> None:
    for name in _IMPORTED_AT_THE_END:
        with contextlib.suppress(Exception):  # who needs it will say so
            importlib.import_module(name)


def _end_with(parent: int) -> None:
    """End this process when the search that began it is gone, killed perhaps."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main(text: str) -> None:
    """`python -m autoft.engine.prepare ERRAND`."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    errand = decode(_Errand, text)
    run = Run.open(Path(errand.run))
    backbone = next(backbone for backbone in run.record.backbones if backbone.name == errand.backbone)
    prepare(run, Host.from_refs(errand.plugins), backbone, errand.image_size)


if __name__ == "__main__":
    main(sys.argv[1])
