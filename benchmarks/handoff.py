"""A bundle in the hands of a stranger: verified and run where there is neither autoft nor torch.

    python benchmarks/handoff.py              # searches the example for a minute first
    python benchmarks/handoff.py BUNDLE       # takes a bundle, or a run folder

The bundle is copied to an empty folder. A fresh virtual environment gets onnxruntime, numpy and Pillow, nothing else;
there the bundle's own verify.py runs three times, then examples/infer.py; then examples/infer.mjs under Node with
onnxruntime-node. Needs a network, or mirrors, for pip and npm.

Targets: verify.py passes, process start to exit in less than 5 s (median); both examples print PASS.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import common
from common import Check, Workplace

from autoft.values.bundle import MANIFEST

PACKAGES = ("onnxruntime", "numpy", "pillow")
ABSENT = ("torch", "torchvision", "timm", "autoft", "onnx", "ray")
NODE_PACKAGE = "onnxruntime-node"
CPU_ONLY = {"ONNXRUNTIME_NODE_INSTALL": "skip"}
VERIFICATIONS, MOST_SECONDS = 3, 5.0

# ---------------------------------------------------------------- values


@dataclass(frozen=True)
class Step:
    """A command on the bundle: seconds of each time from process start to exit, exit code, and what it said last."""

    command: str
    seconds: tuple[float, ...]
    code: int
    said: str

    @property
    def passed(self) -> bool:
        """Whether it ended well and said so."""
        return self.code == 0 and self.said.startswith("PASS")


@dataclass(frozen=True)
class Result:
    """The bundle's files and bytes, what was installed where it ran, and the steps."""

    files: int
    bytes: int
    python_packages: tuple[str, ...]
    absent: tuple[str, ...]
    node: Mapping[str, str]
    steps: tuple[Step, ...]


# ---------------------------------------------------------------- steps


@contextmanager
def bundle_of(given: Path | None) -> Iterator[Path]:
    """The bundle that is given, or that of a search for a minute. Raises `SystemExit` when it is none."""
    if given is not None:
        found = next((path for path in (given, given / "export") if (path / MANIFEST).is_file()), None)
        if found is None:
            raise SystemExit(f"{given} is no bundle: there is no {MANIFEST}")
        yield found
        return
    with common.workplace() as place:
        _, run = common.search(place, "--time", "60s", "--runner", "inline")
        yield run.model.parent


def fresh_environment(place: Workplace) -> Path:
    """The interpreter of a new virtual environment with the three packages."""
    folder = place.path / "venv"
    place.run([sys.executable, "-m", "venv", folder]).require_success()
    python = next(path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists())
    place.run([python, "-m", "pip", "install", "--quiet", *PACKAGES]).require_success()
    return python


def absent(place: Workplace, python: Path) -> tuple[str, ...]:
    """The packages that must not be there. Raises `RuntimeError` when one of them is."""
    code = f"from importlib.util import find_spec; print(*filter(find_spec, {ABSENT}))"
    if found := place.run([python, "-I", "-c", code]).require_success().stdout.split():
        raise RuntimeError(f"the fresh environment is not: it has {', '.join(found)}")
    return ABSENT


def step(place: Workplace, command: list[str | Path], times: int) -> Step:
    """Run a command so many times, or until it fails."""
    seconds: list[float] = []
    while True:
        finished = place.run(command)
        seconds.append(round(finished.seconds, 2))
        if finished.code != 0 or len(seconds) == times:
            break
    lines = (finished.stdout if finished.code == 0 else finished.stderr).strip().splitlines()
    name = " ".join(Path(part).name for part in command if part != "-I")
    return Step(name, tuple(seconds), finished.code, lines[-1] if lines else "")


def installed_node(place: Workplace) -> dict[str, str]:
    """Versions of Node and of onnxruntime-node, once it is installed beside the bundle; empty without npm."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        return {}
    install = [npm, "install", "--prefix", place.path, "--no-audit", "--no-fund", NODE_PACKAGE]
    place.run(install).require_success()
    package = json.loads((place.path / "node_modules" / NODE_PACKAGE / "package.json").read_text(encoding="utf-8"))
    version = place.run([node, "--version"]).require_success().stdout.strip()
    return {"node": version.removeprefix("v"), NODE_PACKAGE: package["version"]}


# ---------------------------------------------------------------- all of it


def measure(given: Path) -> Result:
    """Everything on a copy of the bundle."""
    with common.workplace(**CPU_ONLY) as place:
        bundle = place.path / "bundle"
        shutil.copytree(given, bundle)
        sizes = [path.stat().st_size for path in bundle.rglob("*") if path.is_file()]
        python = fresh_environment(place)
        packages = place.run([python, "-m", "pip", "freeze"]).require_success().stdout.split()
        missing = absent(place, python)
        steps = [
            step(place, [python, "-I", bundle / "verify.py"], VERIFICATIONS),
            step(place, [python, "-I", bundle / "examples" / "infer.py"], 1),
        ]
        if node := installed_node(place):
            steps.append(step(place, ["node", bundle / "examples" / "infer.mjs"], 1))
        else:
            steps.append(Step("node infer.mjs", (), 127, "not run: there is no npm and node here"))
    return Result(len(sizes), sum(sizes), tuple(packages), missing, node, tuple(steps))


def show(result: Result) -> None:
    """Print the table and what was installed."""
    node = ", ".join(f"{name} {version}" for name, version in result.node.items())
    print(f"{result.files} files, {result.bytes / 1e6:.1f} MB; {', '.join(result.python_packages)}; {node}")
    common.show(
        "the bundle elsewhere",
        ("command", "seconds", "exit code", "says"),
        [(s.command, " ".join(f"{x:.2f}" for x in s.seconds), s.code, s.said) for s in result.steps],
    )


def checks(result: Result) -> list[Check]:
    """The result against its targets."""
    verifying, *_ = result.steps
    median = statistics.median(verifying.seconds)
    return [
        *(Check(s.command, "PASS" if s.passed else s.said[:60], "PASS", s.passed) for s in result.steps),
        Check(
            f"seconds of verify.py, median of {len(verifying.seconds)}",
            f"{median:.2f}",
            f"< {MOST_SECONDS:g}",
            median < MOST_SECONDS,
        ),
    ]


def main() -> int:
    """Take or make a bundle, measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="a bundle or a run folder, in place of a new one")
    with bundle_of(parser.parse_args().bundle) as bundle:
        result = measure(bundle.resolve())
    show(result)
    return common.publish("handoff", result, checks(result))


if __name__ == "__main__":
    sys.exit(main())
