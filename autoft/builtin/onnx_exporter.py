"""Built-in exporter: a trained classifier to one ONNX file that says what it is.

`model.core.onnx` takes preprocessed `images` `(batch, 3, size, size)` float32 and gives `logits` `(batch, classes)`.
Its metadata holds, as JSON, what deploying it takes: `autoft.schema`, `autoft.labels`, `autoft.preprocess`,
`autoft.backbone`, `autoft.trial`, `autoft.validation` and `autoft.data_fingerprint`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autoft import Artifact, Exporter, Handoff, RunFailed, hookimpl

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

FILE = "model.core.onnx"
SCHEMA = 1
OPSET = 18
IR_VERSION = 8  # the oldest that may carry opset 18, so the one that most runtimes read


class OnnxExporter(Exporter):
    """Exports through torch.onnx: by dynamo, without and with fused attention, then by TorchScript."""

    name = "onnx"
    summary = "one ONNX file, opset 18, dynamic batch, labels and preprocessing inside"

    def export(self, classifier: nn.Module, handoff: Handoff, folder: Path) -> Iterator[Artifact]:
        """Write `folder/model.core.onnx`, made in one way after another; each is an artifact.

        Paths are relative to the folder that holds `folder`. Raises `RunFailed` with every cause when no way works,
        `OSError` when the file cannot be written.
        """
        import torch

        size = handoff.preprocess.size
        # Two images: a batch of one would be taken for a constant.
        images = 2 * torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        causes = []
        for way in _WAYS:
            try:
                content = _exported(way, classifier, images, handoff)
            except Exception as error:  # the exporters raise nearly anything for a network they cannot follow
                causes.append(f"{way.name}: {_root_cause(error)}")
                continue
            _write(folder / FILE, content)
            yield _artifact(f"{folder.name}/{FILE}", content, way.name, causes)
        if len(causes) == len(_WAYS):
            raise RunFailed(f"{handoff.backbone.name} cannot be exported to ONNX; {'; '.join(causes)}")


@hookimpl
def autoft_exporters() -> list[Exporter]:
    """The ONNX exporter."""
    return [OnnxExporter()]


# ---------------------------------------------------------------- torch to ONNX


def _exported(way: _Way, classifier: nn.Module, images: Tensor, handoff: Handoff) -> bytes:
    """The finished file. Raises nearly anything."""
    with _quiet(), _switched(classifier, images, way.switches):
        content: bytes = _finished(way.convert(classifier, images), handoff).SerializeToString()
    return content


def _artifact(path: str, content: bytes, way: str, causes: Sequence[str]) -> Artifact:
    return Artifact(
        path=path,
        format="onnx",
        opset=OPSET,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        exporter=way,
        failed=tuple(causes),
    )


def _dynamo(classifier: nn.Module, images: Tensor, optimize: bool = True) -> onnx.ModelProto:
    import torch

    program = torch.onnx.export(
        classifier,
        (images,),
        input_names=["images"],
        output_names=["logits"],
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        optimize=optimize,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return program.model_proto


def _torchscript(classifier: nn.Module, images: Tensor) -> onnx.ModelProto:
    import onnx
    import torch

    file = io.BytesIO()
    with _no_cpp_log():
        torch.onnx.export(
            classifier,
            (images,),
            file,  # type: ignore[arg-type]  # takes a file object, though its annotation does not say so
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=False,
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )
    return onnx.load_from_string(file.getvalue())


@dataclass(frozen=True)
class _Way:
    """A way of exporting: its name, torch's exporter, and the switches of the network's modules that are set for it."""

    name: str
    convert: Callable[[nn.Module, Tensor], onnx.ModelProto]
    switches: Mapping[str, bool]


# Switches that change how a module computes, not what. Tracing an in-place activation is a long detour: without it,
# EfficientNet-Lite0 exports in half the time. Fused attention with a bias or in five dimensions does not export, and
# gives a larger graph where it does, so it is the second choice.
_PLAIN: Mapping[str, bool] = {"inplace": False, "fused_attn": False}
_WAYS = (
    _Way("torch.onnx dynamo, attention not fused", _dynamo, _PLAIN),
    _Way("torch.onnx dynamo", _dynamo, {}),
    # torch's own optimiser loses a node of some graphs (gemma4_vit).
    _Way("torch.onnx dynamo, graph not optimised", partial(_dynamo, optimize=False), _PLAIN),
    _Way("torch.onnx torchscript", _torchscript, _PLAIN),
)


@contextmanager
def _switched(classifier: nn.Module, images: Tensor, switches: Mapping[str, bool]) -> Iterator[None]:
    """Set the switches inside the block, unless the network gives something else with them."""
    import torch

    switched = [
        (module, name, now)
        for module in classifier.modules()
        for name, now in vars(module).items()
        if name in switches and isinstance(now, bool) and now != switches[name]
    ]
    with torch.inference_mode():
        expected = classifier(images.clone())
    try:
        _switch((module, name, switches[name]) for module, name, _ in switched)
        with torch.inference_mode():
            same = torch.allclose(classifier(images.clone()), expected, rtol=1e-4, atol=1e-5)
        if not same:
            _switch(switched)
        yield
    finally:
        _switch(switched)


def _switch(settings: Iterable[tuple[nn.Module, str, bool]]) -> None:
    for module, name, value in settings:
        setattr(module, name, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """No prints, warnings or log lines of the exporters: a failed try is no news while another one may work."""
    before = logging.root.manager.disable
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def _no_cpp_log() -> Iterator[None]:
    """Drop the graphs that the TorchScript exporter prints from C++ when it fails, in spite of verbose=False.

    They go to stdout; stderr is not buffered, so that what is sent there can be dropped for a while and no longer.
    """
    import torch

    torch._C._jit_set_onnx_log_output_stream("stderr")
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _root_cause(error: BaseException) -> str:
    """The first line of the error at the bottom: the exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ---------------------------------------------------------------- what the file says


def _finished(model: onnx.ModelProto, handoff: Handoff) -> onnx.ModelProto:
    """The model with our metadata and nothing of this machine. Raises when it is not the promised interface."""
    import onnx

    opsets = {opset.domain: opset.version for opset in model.opset_import}
    if opsets != {"": OPSET} or model.functions:
        raise ValueError(f"asked for plain ONNX opset {OPSET}, got {opsets}")
    size = handoff.preprocess.size
    _declare(model.graph.input, "images", (3, size, size))
    _declare(model.graph.output, "logits", (len(handoff.labels),))
    _strip(model.graph)
    model.doc_string = ""
    model.ir_version = IR_VERSION
    onnx.helper.set_model_props(model, dict(_metadata(handoff)))
    onnx.checker.check_model(model)
    return model


def _declare(values: Sequence[onnx.ValueInfoProto], name: str, shape: tuple[int, ...]) -> None:
    """Name the batch dimension of the one input or output, and state the sizes that the exporter left open."""
    found = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    wanted = (0, *shape)  # 0 stands for an open size
    sizes = found.get(name, [])
    if len(found) != 1 or len(sizes) != len(wanted) or any(a not in (0, b) for a, b in zip(sizes, wanted, strict=True)):
        raise ValueError(f"asked for {name!r} of shape {wanted}, got {found} (0 is an open size)")
    batch, *others = values[0].type.tensor_type.shape.dim
    batch.dim_param = "batch"
    for dim, size in zip(others, shape, strict=True):
        dim.dim_value = size


def _strip(graph: onnx.GraphProto) -> None:
    """Remove comments and metadata below the model: the exporters put stack traces with local paths there."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        attribute.ClearField("doc_string")
        if attribute.HasField("g"):
            _strip(attribute.g)
        for subgraph in attribute.graphs:
            _strip(subgraph)


def _metadata(handoff: Handoff) -> Iterator[tuple[str, str]]:
    """Metadata keys with their JSON, in plain ASCII: readers in any language get it right."""
    backbone, trial = handoff.backbone, handoff.trial
    facts = {
        "schema": SCHEMA,
        "labels": handoff.labels,
        "preprocess": dataclasses.asdict(handoff.preprocess),
        "backbone": {"name": backbone.name, "license": backbone.license, "source": backbone.source},
        "trial": {"id": trial.id, "freeze": trial.freeze, "params": dict(trial.params), "seed": trial.seed},
        "validation": {handoff.metric: handoff.validation_score},
        "data_fingerprint": handoff.data_fingerprint,
    }
    for key, value in facts.items():
        yield f"autoft.{key}", json.dumps(value, allow_nan=False)


def _write(path: Path, content: bytes) -> None:
    """Put `content` at `path`, durably: the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
