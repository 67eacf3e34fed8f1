"""Built-in exporter: a trained classifier to one ONNX file that says what it is.

`model.core.onnx` takes preprocessed `images` `(batch, 3, size, size)` float32 and gives `logits` `(batch, outputs)`.
Its metadata holds, as JSON, what deploying it takes: `autoft.schema`, `autoft.labels`, `autoft.targets`,
`autoft.preprocess`, `autoft.backbone`, `autoft.trial`, `autoft.validation` and `autoft.data_fingerprint`.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import hashlib
import io
import json
import logging
import math
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft import Artifact, Exporter, Handoff, RunFailed, hookimpl

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

FILE = "model.core.onnx"
TEMPLATE = "template.onnx"
SCHEMA = 1
OPSET = 18
_SMALL_CONSTANT = 512 * 512  # numbers; the optimiser's own limit of what it computes beforehand
IR_VERSION = 8  # the oldest that may carry opset 18, so the one that most runtimes read

log = logging.getLogger("autoft")


class OnnxExporter(Exporter):
    """Exports through torch.onnx: by dynamo, without and with fused attention, then by TorchScript."""

    name = "onnx"
    summary = "one ONNX file, opset 18, dynamic batch, labels and preprocessing inside"

    def export(self, classifier: nn.Module, handoff: Handoff, folder: Path) -> Iterator[Artifact]:
        """Write `folder/model.core.onnx`, made in one way after another; each is an artifact.

        Paths are relative to the folder that holds `folder`. Raises `RunFailed` with every cause when no way works,
        `OSError` when the file cannot be written.
        """
        images, causes = _examples(handoff.preprocess.size), []
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

    def prepare(self, classifier: nn.Module, image_size: int, folder: Path) -> None:
        """Write `folder/template.onnx`: the graph before anything is computed of its weights, and without them."""
        way = _WAYS[0]
        with _quiet(), _uncollected():
            model = _dynamo(_simplified(classifier, _examples(image_size), way.switches), _examples(image_size), False)
        for initializer in _weights(model, classifier.state_dict()):
            initializer.ClearField("raw_data")
        _strip(model.graph)
        _write(folder / TEMPLATE, model.SerializeToString())

    def export_prepared(
        self, classifier: nn.Module, handoff: Handoff, prepared: Path, folder: Path
    ) -> Iterator[Artifact]:
        """Write `folder/model.core.onnx` from `prepared/template.onnx` and the classifier's weights.

        Nothing when the template is not there, damaged, or of a network with other tensors. Raises `OSError` when the
        file cannot be written.
        """
        try:
            content = _filled(prepared / TEMPLATE, classifier, handoff)
        except Exception as error:  # what onnx raises for a damaged file is its own affair
            log.info("the graph prepared for %s is not used: %s", handoff.backbone.name, _root_cause(error))
            return
        _write(folder / FILE, content)
        yield _artifact(f"{folder.name}/{FILE}", content, f"{_WAYS[0].name}, prepared during the search", ())


@hookimpl
def autoft_exporters() -> list[Exporter]:
    """The ONNX exporter."""
    return [OnnxExporter()]


# ---------------------------------------------------------------- torch to ONNX


def _exported(way: _Way, classifier: nn.Module, images: Tensor, handoff: Handoff) -> bytes:
    """The finished file. Raises nearly anything."""
    with _quiet(), _uncollected():
        model = way.convert(_simplified(classifier, images, way.switches), images)
        content: bytes = _finished(model, handoff).SerializeToString()
    return content


def _filled(template: Path, classifier: nn.Module, handoff: Handoff) -> bytes:
    """The finished file of a template. Raises nearly anything.

    The graph is optimised only now: that computes with weights (it merges equal ones, folds BatchNorm into
    convolutions), and takes a fraction of a second, where following the network takes several.
    """
    import onnx

    model, tensors = onnx.load(template), classifier.state_dict()
    for initializer in _weights(model, tensors):
        tensor = onnx.numpy_helper.from_array(tensors[initializer.name].numpy(), initializer.name)
        if (tensor.dims, tensor.data_type) != (initializer.dims, initializer.data_type):
            raise ValueError(f"{initializer.name} has another shape or type than when the graph was made")
        initializer.CopyFrom(tensor)
    with _quiet(), _uncollected():
        content: bytes = _finished(_optimised(model), handoff).SerializeToString()
    return content


def _weights(model: onnx.ModelProto, tensors: Mapping[str, Tensor]) -> list[onnx.TensorProto]:
    """The initializers that are tensors of the classifier, by its names for them; the others are constants."""
    return [initializer for initializer in model.graph.initializer if initializer.name in tensors]


def _examples(size: int) -> Tensor:
    """Images to follow a network with. Two: a batch of one would be taken for a constant."""
    import torch

    return 2 * torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


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
        optimize=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return _optimised(program.model_proto) if optimize else program.model_proto


def _optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with everything computed that follows from its weights, in forms that OpenCV 4.10 does not fail on.

    Whatever its size: OpenCV crashes on a network that standardises its weights as it runs, not on one that did.
    """
    from onnxscript import optimizer, rewriter

    largest = max((math.prod(tensor.dims) for tensor in model.graph.initializer), default=0)
    optimised: onnx.ModelProto = optimizer.optimize(
        rewriter.rewrite(model, [_gelu_halved_last()]),
        input_size_limit=largest,
        output_size_limit=max(largest, _SMALL_CONSTANT),
    )
    _settle_reshapes(optimised)
    optimizer.remove_unused_nodes(optimised)
    return optimised


def _gelu_halved_last() -> Any:
    """A rule that takes x * (0.5 * y), as torch writes GELU, for (x * y) * 0.5, where OpenCV looks for the 0.5."""
    from onnxscript.rewriter import pattern

    def found(op: Any, x: Any, root: Any, one: Any, half: Any) -> Any:
        return op.Mul(x, op.Mul(half, op.Add(op.Erf(op.Div(x, root)), one)))

    def written(op: Any, x: Any, root: Any, one: Any, half: Any) -> Any:
        return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, root)), one)), half)

    return pattern.RewriteRule(found, written)


def _settle_reshapes(model: onnx.ModelProto) -> None:
    """Give every Reshape of whose result only one size is open its shape as a constant, where it is computed."""
    import numpy as np
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    sizes = {value.name: _sizes(value) for value in (*graph.value_info, *graph.output)}
    constant = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        wanted = sizes.get(node.output[0], [])
        if node.op_type == "Reshape" and node.input[1] not in constant and wanted and wanted.count(0) <= 1:
            shape = np.array([size or -1 for size in wanted], np.int64)
            node.input[1] = f"{node.output[0]}/shape"
            model.graph.initializer.append(onnx.numpy_helper.from_array(shape, node.input[1]))


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    """The sizes of a tensor, 0 for an open one."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


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
    # The optimiser loses a node of some graphs (gemma4_vit).
    _Way("torch.onnx dynamo, graph not optimised", partial(_dynamo, optimize=False), _PLAIN),
    _Way("torch.onnx torchscript", _torchscript, _PLAIN),
)


def _simplified(classifier: nn.Module, images: Tensor, switches: Mapping[str, bool]) -> nn.Module:
    """A copy of the classifier that is easier to follow, unless it gives something else: then a plain copy.

    The exporters see copies only, so that whatever they do to a module does not reach the one that is scored. Weights
    are made contiguous, since other layouts come back as gathers in the graph.
    """
    import torch

    simple = copy.deepcopy(classifier)
    for module in list(simple.modules()):
        for name, value in switches.items():
            if isinstance(vars(module).get(name), bool):
                setattr(module, name, value)
        for name, child in module.named_children():
            if _averages_all(child):
                setattr(module, name, _mean_over_pixels())
    with torch.inference_mode():
        expected = classifier(images.clone())
        same = torch.allclose(simple(images.clone()), expected, rtol=1e-4, atol=1e-5)
    return (simple if same else copy.deepcopy(classifier)).to(memory_format=torch.contiguous_format)


def _averages_all(module: nn.Module) -> bool:
    from torch import nn

    return type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1))


def _mean_over_pixels() -> nn.Module:
    """What pooling to one pixel is, without the strides of channels-last images, which torch would export with it."""
    from torch import nn

    class MeanOverPixels(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((-2, -1), keepdim=True)

    return MeanOverPixels()


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
def _uncollected() -> Iterator[None]:
    """No garbage collection: following a network makes objects that stay, and going through them again and again took a
    sixth of the time (Lite0, three tries each: 13.9 s, without 11.6)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
        torch._C._jit_set_onnx_log_output_stream("stdout")
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
    _declare(model.graph.output, "logits", (handoff.width,))
    _strip(model.graph)
    model.doc_string = ""
    model.ir_version = IR_VERSION
    onnx.helper.set_model_props(model, dict(_metadata(handoff)))
    onnx.checker.check_model(model)
    return model


def _declare(values: Sequence[onnx.ValueInfoProto], name: str, shape: tuple[int, ...]) -> None:
    """Name the batch dimension of the one input or output, and state the sizes that the exporter left open."""
    found = {value.name: _sizes(value) for value in values}
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
        "targets": dataclasses.asdict(handoff.targets),
        "preprocess": dataclasses.asdict(handoff.preprocess),
        "backbone": {"name": backbone.name, "license": backbone.license, "source": backbone.source},
        "trial": {
            "id": trial.id,
            "freeze": trial.freeze,
            "params": dict(trial.params),
            "seed": trial.seed,
            "search_seed": handoff.search_seed,
            "train_on": trial.train_on,
        },
        "validation": {handoff.metric: handoff.validation_score, "of_trial": trial.scored_as},
        "data_fingerprint": handoff.data_fingerprint,
    }
    for key, value in facts.items():
        yield f"autoft.{key}", json.dumps(value, allow_nan=False)


def _write(path: Path, content: bytes) -> None:
    """Put `content` at `path`, durably: the whole file or none."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
