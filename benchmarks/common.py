"""What the benchmarks share: searches in processes of their own, the machine's facts, tables and result files."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from autoft.store import Journal
from autoft.study.machine import versions
from autoft.study.record import StudyRecord
from autoft.study.run import Run
from autoft.values.codec import decode
from autoft.values.ledger import Ledger
from autoft.values.summary import Summary
from autoft.values.trial import Event

ROOT = Path(__file__).parents[1]
FASHION = ROOT / "examples" / "fashion"
RESULTS = Path(__file__).parent / "results"
AUTOFT = (sys.executable, "-m", "autoft")

# ---------------------------------------------------------------- processes


@dataclass(frozen=True)
class Finished:
    """A process that ended: exit code (negative: the signal), seconds from start to exit, and what it wrote."""

    code: int
    seconds: float
    stdout: str
    stderr: str

    def require_success(self) -> Finished:
        """Itself. Raises `RuntimeError` with the end of stderr when the process failed."""
        if self.code != 0:
            raise RuntimeError(f"exit code {self.code} after {self.seconds:.0f} s: {self.stderr[-2000:]}")
        return self


@dataclass(frozen=True)
class Workplace:
    """A clean temporary folder: every process started here has its own cache, Ray session and temporary files."""

    path: Path
    more: Mapping[str, str]

    def environment(self) -> dict[str, str]:
        """The variables of a process that starts with nothing cached and looks for no network."""
        temporary = self.path / "t"
        temporary.mkdir(exist_ok=True)
        own = {
            "AUTOFT_CACHE_DIR": str(self.path / "cache"),
            "TMPDIR": str(temporary),
            "RAY_TMPDIR": str(temporary),
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        return {**os.environ, **own, **self.more}

    def start(self, command: Sequence[str | Path]) -> Process:
        """Start a command as the leader of a session of its own, in this folder."""
        return Process(command, self)

    def run(self, command: Sequence[str | Path]) -> Finished:
        """Run a command to its end."""
        return self.start(command).wait()


@contextmanager
def workplace(**more: str) -> Iterator[Workplace]:
    """A `Workplace`, with `more` variables, that is removed afterwards.

    Its name is short: Ray's socket paths may have 107 bytes.
    """
    path = Path(tempfile.mkdtemp(prefix="ft-"))
    try:
        yield Workplace(path, more)
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Process:
    """A running command, leader of a session; Ray's processes are its descendants."""

    def __init__(self, command: Sequence[str | Path], place: Workplace) -> None:
        self._out, self._err = (tempfile.TemporaryFile("w+", dir=place.path) for _ in range(2))  # noqa: SIM115
        self._began = time.monotonic()
        self._popen = subprocess.Popen(
            [str(part) for part in command],
            cwd=place.path,
            env=place.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )
        self.pid = self._popen.pid

    def wait(self, timeout: float | None = None) -> Finished:
        """How it ended. Raises `subprocess.TimeoutExpired` while it runs on."""
        code = self._popen.wait(timeout)
        seconds = time.monotonic() - self._began
        return Finished(code, seconds, _content(self._out), _content(self._err))

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._popen.poll() is None

    def family(self) -> set[int]:
        """The process, its descendants and whoever else is in its session."""
        known = {self.pid}
        parents = {pid: (parent, session) for pid, parent, session in _processes()}
        while more := {p for p, (up, session) in parents.items() if up in known or session == self.pid} - known:
            known |= more
        return known

    def kill(self) -> None:
        """SIGKILL to the process group at once, then to descendants that left the group, as Ray's may."""
        family = self.family() - {self.pid}
        _send(os.killpg, self.pid)
        for pid in family:
            _send(os.kill, pid)
        self._popen.wait()
        while any(Path(f"/proc/{pid}/mem").exists() and not _is_zombie(pid) for pid in family):
            time.sleep(0.05)


def _content(file: Any) -> str:
    file.seek(0)
    return str(file.read())


def _processes() -> Iterator[tuple[int, int, int]]:
    """Process id, parent and session of everything that runs."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            yield int(folder.name), int(fields[1]), int(fields[3])


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _send(how: Any, pid: int) -> None:
    try:
        how(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


# ---------------------------------------------------------------- searches


@dataclass(frozen=True)
class RunFiles:
    """The files of a run folder, as typed values."""

    path: Path

    @property
    def summary(self) -> Summary:
        """What the run came to."""
        return decode(Summary, (self.path / "summary.json").read_text(encoding="utf-8"))

    @property
    def record(self) -> StudyRecord:
        """study.json."""
        return Run.open(self.path).record

    @property
    def events(self) -> list[Event]:
        """The journal, oldest line first."""
        return Journal.read(self.path / "trials.jsonl")

    @property
    def ledger(self) -> Ledger:
        """The journal, trial by trial."""
        return Ledger(self.events)

    @property
    def model(self) -> Path:
        """The exported ONNX file."""
        return self.path / self.summary.model


def search_command(out: Path, *options: str | Path, data: Path = FASHION) -> list[str | Path]:
    """`autoft search DATA --out OUT --offline --json OPTIONS`, by this interpreter."""
    return [*AUTOFT, "search", data, "--out", out, "--offline", "--json", *options]


def search(place: Workplace, *options: str | Path, data: Path = FASHION) -> tuple[Finished, RunFiles]:
    """Search `data` in a process of its own. Raises `RuntimeError` when it fails."""
    out = place.path / "run"
    finished = place.run(search_command(out, *options, data=data))
    return finished.require_success(), RunFiles(out)


# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class Facts:
    """The machine a benchmark ran on; `load` is its one-minute load average when the results were written."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    load: float


@dataclass(frozen=True)
class Check:
    """A figure held against its target, both in words."""

    what: str
    measured: str
    target: str
    reached: bool


def facts() -> Facts:
    """The facts of this machine; cores are those this process may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    cpu = models[0] if models else platform.machine()
    return Facts(cpu, cores, round(memory, 1), platform.system(), round(os.getloadavg()[0], 2))


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on stdout."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


def publish(name: str, result: Any, checks: Sequence[Check]) -> int:
    """Write `results/NAME.json`, print the checks; the exit code: 0 when every target is reached, else 1.

    `result` is a frozen dataclass.
    """
    document = {
        "benchmark": name,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": sys.argv[1:],
        "machine": dataclasses.asdict(facts()),
        "versions": versions(),
        "checks": [dataclasses.asdict(check) for check in checks],
        "result": dataclasses.asdict(result),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    verdicts = {True: "reached", False: "MISSED"}
    if checks:
        rows = [(check.what, check.measured, check.target, verdicts[check.reached]) for check in checks]
        show(name, ("", "measured", "target", ""), rows)
    return 0 if all(check.reached for check in checks) else 1
