"""Whether the ONNX exporter follows the timm zoo: one architecture a family, exported and compared with torch.

    python benchmarks/architectures.py                     # those that have no row yet, then the whole table
    python benchmarks/architectures.py hiera_tiny_224 ...  # these again, then the table of these

The architectures stand in `architectures.txt`. Each gets random weights, is exported, and its logits in onnxruntime,
optimisations on, must agree with torch at batch 1, 2 and 5: largest difference at most 1e-4 of the logit scale. As in a
search, the exporter's next way is tried where one is refused. Target: at least 97 of 99.

Weights as timm initialises them would make this vacuous: last normalisations of zero and LayerScales of 1e-6 silence
whole branches. So what is nearly zero is replaced, batch normalisations are given statistics, and logits that do not
differ from image to image are refused or brought to where they do.

Each architecture runs in a process of its own, one at a time: a crash or a hang is a miss with its cause. Rows are kept
in `results/architectures.jsonl` as they come, so that an interrupted sweep goes on; delete it to begin again.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import timm
import torch
from common import Check
from torch import Tensor, nn

from autoft import Artifact, Backbone, Handoff, InputSpec, Preprocess, Trial
from autoft.builtin.onnx_exporter import FILE, OnnxExporter
from autoft.bundle.onnx_runtime import CoreModel, Images, Optimisations
from autoft.bundle.parity import Setting, core_parity, core_refusal
from autoft.errors import RunFailed, UserError
from autoft.tasks.forms.table import answering
from autoft.tasks.single_label import SingleLabel
from autoft.tasks.statistics import Logits
from autoft.values.codec import decode, encode
from autoft.values.target import Targets

NAMES = Path(__file__).with_suffix(".txt")
ROWS = common.RESULTS / "architectures.jsonl"
TARGET = 97
BATCHES = (1, 2, 5)
CLASSES = 10
SCALE = 5.0
"""Largest |logit|: about that of a trained classifier."""
NEARLY_ZERO = 1e-3
"""A parameter with nothing above this is taken for one that starts at zero."""
SPREAD, ENOUGH, LEAST_SPREAD = 0.02, 1e-3, 1e-4
"""How far the logits of any two images are to be apart, as a part of the scale; what will do, ten times what parity
allows; and with how little to begin with that can be had."""

# ---------------------------------------------------------------- values


@dataclass(frozen=True)
class Architecture:
    """A timm architecture, and an image size in place of its own."""

    name: str
    size: int | None = None


@dataclass(frozen=True)
class Exported:
    """The file that agrees: the exporter's way, ways `refused` before it, MiB, and the largest |difference| of a logit.

    `delta` is a part of the logit scale, at most 1e-4; `seconds` are those of exporting.
    """

    way: str
    refused: tuple[str, ...]
    mib: float
    delta: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """What came of one architecture. `error` says why there is no `exported`.

    `parameters` in millions, `size` in pixels, `spread` between any two images as a part of the logit scale: none of
    them where building did not come that far. `seconds` is the whole process.
    """

    name: str
    size: int | None = None
    parameters: float | None = None
    spread: float | None = None
    exported: Exported | None = None
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """One row an architecture, in the order of the list."""

    timeout: float
    threads: int
    rows: tuple[Row, ...]


# ---------------------------------------------------------------- a network that has something to compare


class Rescaled(nn.Module):
    """A network whose logits are shifted, then multiplied."""

    shift: Tensor
    factor: Tensor

    def __init__(self, network: nn.Module, shift: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("shift", shift)
        self.register_buffer("factor", factor)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(batch, classes)`."""
        logits: Tensor = self.network(images)
        return (logits - self.shift) * self.factor


def pictures(n: int, size: int, seed: int) -> Tensor:
    """Normalised images `(n, 3, size, size)` that differ at large, as photographs do: blots of colour under noise."""
    generator = torch.Generator().manual_seed(seed)
    blots = torch.randn(n, 3, 4, 4, generator=generator)
    noise = torch.randn(n, 3, size, size, generator=generator)
    share = torch.rand(n, 1, 1, 1, generator=generator)
    return nn.functional.interpolate(blots, (size, size), mode="bilinear") * (1 - share) + noise * share


def enliven(network: nn.Module, images: Tensor) -> None:
    """Fill what starts at zero, and give batch normalisations the statistics of the images."""
    for name, parameter in network.named_parameters():
        if parameter.detach().abs().max() < NEARLY_ZERO:
            _fill(name, parameter)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the plain average, which is this one batch
            module.train()
    with torch.no_grad():
        network(images)
    network.eval()


def _fill(name: str, parameter: nn.Parameter) -> None:
    if name.endswith("bias"):
        nn.init.normal_(parameter, std=0.1)
    elif parameter.numel() == max(parameter.shape, default=1):  # the gain of a normalisation or of a branch
        nn.init.uniform_(parameter, 0.1, 0.3)
    else:
        nn.init.normal_(parameter, std=max(0.02, parameter[0].numel() ** -0.5))


def rescaled(network: nn.Module, images: Tensor) -> Rescaled:
    """The network with logits of `SCALE`, shifted towards their mean as far as it takes for a `SPREAD`.

    Raises `RuntimeError` when they hardly depend on the image: there would be nothing to compare.
    """
    logits = _logits(network, images)
    found = spread(logits)
    if not found > LEAST_SPREAD:
        raise RuntimeError(f"with these weights logits of any two images differ by {found:.1g} of their scale alone")
    shift = logits.mean(0) * max(0.0, 1 - found / SPREAD)
    classifier = Rescaled(network, shift, SCALE / (logits - shift).abs().max()).eval()
    if (now := spread(_logits(classifier, images))) < ENOUGH:
        raise RuntimeError(f"shifted logits of two images differ by {now:.1g} of their scale alone")
    return classifier


def spread(logits: Tensor) -> float:
    """How far the logits of the two most similar images are apart, as a part of max |logit|; NaN with a NaN."""
    apart = [float((one - other).abs().max()) for one, other in itertools.combinations(logits, 2)]
    return min(apart) / float(logits.abs().max()) if bool(logits.isfinite().all()) else float("nan")


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = network(images).clone()
    return logits


# ---------------------------------------------------------------- one architecture, in this process


def measure(architecture: Architecture, folder: Path, threads: int) -> Row:
    """Build, export into `folder`, compare. Says on stdout what it is at. Raises what timm and torch raise."""
    _at("building")
    torch.manual_seed(0)
    network: Any = timm.create_model(architecture.name, pretrained=False, num_classes=CLASSES).eval()
    wants = network.pretrained_cfg
    size = architecture.size or wants["input_size"][-1]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    enliven(network, pictures(8, size, seed=1))
    images = pictures(max(BATCHES), size, seed=2)
    classifier = rescaled(network, images)
    expected = _logits(classifier, images)
    row = Row(architecture.name, size, round(parameters / 1e6, 2), round(spread(expected), 4))
    handoff = _handoff(architecture.name, Preprocess(size, tuple(wants["mean"]), tuple(wants["std"])), parameters)
    comparison = Comparison(folder / FILE, images.numpy(), expected.numpy(), threads)
    return _first_that_agrees(row, exports(classifier, handoff, folder), comparison)


def exports(classifier: nn.Module, handoff: Handoff, folder: Path) -> Iterator[Artifact]:
    """One artifact for each way of exporting that works; each overwrites the file of the one before."""
    yield from OnnxExporter().export(classifier, handoff, folder)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A file, and images `(n, 3, size, size)` with torch's logits `(n, classes)` that it is compared with."""

    path: Path
    images: Images
    expected: Logits
    threads: int

    def delta(self, optimisations: Optimisations) -> float:
        """The largest |difference| of a logit at any batch, as a part of the scale. Raises `UserError` if too large."""
        model = CoreModel(self.path, self.threads, optimisations)
        names = [f"picture {number}" for number in range(len(self.images))]
        deltas = []
        for batch in BATCHES:
            setting, how = Setting(batch, optimisations), answering(SingleLabel().on(_targets()))
            parity = core_parity(model, setting, self.images, self.expected, names, how)
            if reason := core_refusal(parity):
                raise UserError(reason)
            deltas.append(parity.max_delta / parity.scale)
        return max(deltas)

    def unoptimised(self) -> str:
        """What the file does without onnxruntime's optimisations, in words: is the file wrong, or how it is run?"""
        try:
            return f"without optimisations it agrees ({self.delta('none'):.1g} of the scale)"
        except UserError as error:
            return f"without optimisations: {error}"


def _first_that_agrees(row: Row, artifacts: Iterator[Artifact], comparison: Comparison) -> Row:
    refused: list[str] = []
    began = time.monotonic()
    _at("exporting")
    try:
        for artifact in artifacts:
            seconds = round(time.monotonic() - began, 2)
            _at(f"comparing {artifact.exporter}")
            try:
                delta = comparison.delta("all")
            except UserError as reason:
                refused.append(f"{artifact.exporter}: {reason}; {comparison.unoptimised()}")
                _at("exporting in the next way")
                continue
            return replace(row, exported=Exported(artifact.exporter, tuple(refused), _mib(artifact), delta, seconds))
    except RunFailed as error:
        refused.append(str(error))
    return replace(row, error="; ".join(refused) or "the exporter gave no file")


def _mib(artifact: Artifact) -> float:
    return round(artifact.size / 2**20, 2)


def _handoff(name: str, preprocess: Preprocess, parameters: int) -> Handoff:
    backbone = Backbone(f"timm/{name}", parameters, InputSpec(preprocess.size), license="none", source="random weights")
    trial = Trial(0, backbone.name, "probe", preprocess.size, {}, seed=0)
    return Handoff(_targets(), preprocess, backbone, trial, "accuracy", 0.0, "none")


def _targets() -> Targets:
    return Targets(SingleLabel.name, SingleLabel.form, tuple(f"class {number}" for number in range(CLASSES)))


def _at(stage: str) -> None:
    print(stage, flush=True)


# ---------------------------------------------------------------- the sweep


def measured(architecture: Architecture, timeout: float, threads: int) -> Row:
    """The row of an architecture that is measured in a process of its own, for at most `timeout` seconds."""
    size = [] if architecture.size is None else ["--size", str(architecture.size)]
    script = str(Path(__file__).resolve())
    command = [sys.executable, script, architecture.name, "--here", *size, "--threads", str(threads)]
    with common.workplace(OMP_NUM_THREADS=str(threads)) as place:
        process = place.start(command)
        try:
            finished = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            error = f"stopped after {timeout:g} s, while {_last_line(process.wait().stdout)}"
            return Row(architecture.name, architecture.size, error=error, seconds=timeout)
        finally:
            if process.running():  # the sweep was interrupted
                process.kill()
    seconds = round(finished.seconds, 1)
    if finished.code == 0:
        return replace(decode(Row, _last_line(finished.stdout)), seconds=seconds)
    reason = f"killed by signal {-finished.code}" if finished.code < 0 else _last_line(finished.stderr)
    error = f"while {_last_line(finished.stdout)}: {reason}"
    return Row(architecture.name, architecture.size, error=error, seconds=seconds)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "starting"


def listed() -> list[Architecture]:
    """The architectures of the list, in its order."""
    lines = [line.split() for line in NAMES.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [Architecture(name, int(size[0]) if size else None) for name, *size in lines]


def kept_rows() -> dict[str, Row]:
    """The rows so far, by name; the last one counts."""
    lines = ROWS.read_text(encoding="utf-8").splitlines(keepends=True) if ROWS.exists() else []
    rows = [decode(Row, line) for line in lines if line.endswith("\n")]  # a kill may have torn the last one
    return {row.name: row for row in rows}


def keep(rows: Mapping[str, Row]) -> None:
    """Write the rows, all of them or none."""
    ROWS.parent.mkdir(exist_ok=True)
    temporary = ROWS.with_suffix(".tmp")
    temporary.write_text("".join(f"{encode(row)}\n" for row in rows.values()), encoding="utf-8")
    temporary.replace(ROWS)


def sweep(architectures: Sequence[Architecture], timeout: float, threads: int) -> dict[str, Row]:
    """Measure one after the other, keeping each row; gives all rows there are."""
    rows = kept_rows()
    for number, architecture in enumerate(architectures, 1):
        row = measured(architecture, timeout, threads)
        rows[row.name] = row
        keep(rows)
        verdict = "agrees" if row.exported else row.error
        print(f"{number}/{len(architectures)} {row.name} {row.seconds:.0f} s: {verdict}", file=sys.stderr, flush=True)
    return rows


def show(rows: Sequence[Row]) -> None:
    """Print the table, and below it the ways and architectures that were refused, with the reasons."""
    columns = ("architecture", "M", "px", "spread", "torch.onnx", "export s", "of 1e-4", "all s")
    common.show("architectures", columns, [_cells(row) for row in rows])
    for row in rows:
        for refused in row.exported.refused if row.exported else ():
            print(f"{row.name}, another way agrees: {refused}")
    for row in rows:
        if row.error is not None:
            print(f"{row.name} MISSED: {row.error}")


def _cells(row: Row) -> Sequence[object]:
    facts = (row.name, _text(row.parameters, ".1f"), _text(row.size, "d"), _text(row.spread, ".3f"))
    if row.exported is None:
        return (*facts, "MISSED", "", "", f"{row.seconds:.0f}")
    export = row.exported
    way = export.way.removeprefix("torch.onnx ").replace("attention not fused", "plain")
    return (*facts, way, f"{export.seconds:.1f}", f"{export.delta / 1e-4:.2f}", f"{row.seconds:.0f}")


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main() -> int:
    """Sweep, print, write the result; with --here, measure one and print its row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="ARCHITECTURE", help="measure these, again if need be")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds for one architecture (default 180)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and onnxruntime (default 1)")
    parser.add_argument("--here", action="store_true", help="measure the one in this process, print its row as JSON")
    parser.add_argument("--size", type=int, help="image size, with --here")
    arguments = parser.parse_args()
    if arguments.here:
        return _here(Architecture(arguments.names[0], arguments.size), arguments.threads)
    everything = {architecture.name: architecture for architecture in listed()}
    known = kept_rows()
    asked = [everything.get(name, Architecture(name)) for name in arguments.names]
    missing = [one for one in everything.values() if one.name not in known]
    rows = sweep(asked or missing, arguments.timeout, arguments.threads)
    show([rows[one.name] for one in asked or everything.values()])
    of_list = tuple(rows[name] for name in everything if name in rows)
    agree = sum(row.exported is not None for row in of_list)
    measured_so_far = f"{agree} of {len(of_list)} measured"
    check = Check("architectures that agree with torch", measured_so_far, f">= {TARGET} of 99", agree >= TARGET)
    return common.publish("architectures", Result(arguments.timeout, arguments.threads, of_list), [check])


def _here(architecture: Architecture, threads: int) -> int:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        print(encode(measure(architecture, Path(folder), threads)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
