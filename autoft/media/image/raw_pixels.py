"""model.onnx: the core network with everything around it inside, from raw pixels to answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from autoft.media.image.pixel_front import FUNCTION, OPSET, front
from autoft.values.handoff import Ending, Layout, Preprocess

if TYPE_CHECKING:
    import onnx

IR_VERSION: Final = 8

# Windows ML's keys (onnx/docs/MetadataProps.md); all three hold of the file as a whole.
_WINDOWS_ML: Final = {
    "Image.BitmapPixelFormat": "Rgb8",
    "Image.ColorSpaceGamma": "SRGB",
    "Image.NominalPixelRange": "NominalRange_0_255",
}


def write_raw_pixel_model(core: Path, path: Path, recipe: Preprocess, ending: Ending, layout: Layout) -> None:
    """Write to `path` the model in `core` (normalised `images` to `logits`), taking uint8 RGB pixels of any size.

    It gives the results of the `ending`, and has the core's metadata, the ending's and the image keys of Windows ML.
    Raises `ValueError` when the core has another interface than `images` and `logits`, or the ending is no ONNX.
    """
    import onnx
    import onnx.inliner
    import onnx.shape_inference

    network = onnx.compose.add_prefix(_plain(onnx.load(core)), "core/")
    outputs = _outputs(network)
    before = onnx.inliner.inline_local_functions(onnx.parser.parse_model(_model(front(recipe, layout))))
    back = _parsed_back(ending, outputs, layout)
    model = onnx.compose.merge_models(before, network, [("images", "core/images")], prefix1="pixels/")
    model = onnx.compose.merge_models(model, back, [("core/logits", "outputs")], prefix2="answer/")
    _rename(model, ("pixels/image", *(f"answer/{result.name}" for result in ending.results)))
    _drop_unused(model.graph)
    _describe(model, network, ending.facts)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"what is made of the core is no valid ONNX: {str(error).splitlines()[0]}") from error
    path.write_bytes(model.SerializeToString())


# ---------------------------------------------------------------- the network's outputs to answers


def ending_model(ending: Ending, outputs: int, layout: Layout) -> bytes:
    """The ending alone, as an ONNX file of `outputs` numbers an image to the ending's results.

    Raises `ValueError`, with the line that is at fault, for a tail that is no ONNX.
    """
    content: bytes = _parsed_back(ending, outputs, layout).SerializeToString()
    return content


def _parsed_back(ending: Ending, outputs: int, layout: Layout) -> onnx.ModelProto:
    """The ending as a model. Raises `ValueError` for a tail that is no ONNX."""
    import onnx
    import onnx.inliner
    import onnx.shape_inference

    try:
        parsed = onnx.parser.parse_model(_model(_back(ending, outputs, layout)))
        back = onnx.inliner.inline_local_functions(parsed)
        onnx.checker.check_model(back, full_check=True)
    except (onnx.parser.ParseError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"the tail of the task is no valid ONNX: {_fault(error, ending.tail)}") from error
    return back


def _fault(error: Exception, tail: str) -> str:
    """What is wrong with a tail, in one line, of what onnx says of the model that it is a part of."""
    said = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
    if parsed := re.search(r"^Error context:(?P<line>.*)\n(?P<cause>.*)", said, re.MULTILINE):
        lines = [line.strip() for line in tail.splitlines() if line.strip()] or [""]
        line = parsed["line"].strip()
        return f"in {line if line in lines else lines[-1]!r}: {parsed['cause']}"
    if lost := re.search(r"input '(.*)' of node", said):
        return f"nothing gives {lost[1]!r} before it is used; its lines make `answers` of `outputs`"
    return " ".join(said.split())


def _back(ending: Ending, outputs: int, layout: Layout) -> str:
    """A graph and the function of the task, whose names are its own."""
    axis = "batch, " if layout == "batch" else ""
    declared = ", ".join(f"{result.kind}[{axis}{result.size}] {result.name}" for result in ending.results)
    last = "Identity ({value})" if layout == "batch" else "Squeeze ({value}, batch_axis)"
    results = "\n".join(f"{result.name} = {last.format(value=result.value)}" for result in ending.results)
    return f"""
    back (float[batch, {outputs}] outputs) => ({declared})
    < int64[1] batch_axis = {{0}} >
    {{
        answers = local.tail (outputs)
        {ending.further}
        {results}
    }}
    {FUNCTION} tail (outputs) => (answers)
    {{
        {ending.tail}
    }}"""


# ---------------------------------------------------------------- models and names


def _model(graph: str) -> str:
    return f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}, "local" : 1]>{graph}'


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    if opsets != {"": OPSET} or model.ir_version != IR_VERSION:
        raise ValueError(
            f"the core must be plain ONNX opset {OPSET}, IR {IR_VERSION}; it is {opsets}, {model.ir_version}"
        )
    return model


def _outputs(network: onnx.ModelProto) -> int:
    """How many numbers the network gives for an image. Raises `ValueError` for another interface."""
    names = [value.name for value in (*network.graph.input, *network.graph.output)]
    if names != ["core/images", "core/logits"]:
        raise ValueError(f"the core must take images and give logits, not {names}")
    return int(network.graph.output[0].type.tensor_type.shape.dim[1].dim_value)


def _rename(model: onnx.ModelProto, names: tuple[str, ...]) -> None:
    """Take the prefix off the names of inputs and outputs, wherever they occur."""
    plain = {name: name.split("/", 1)[1] for name in names}
    for value in (*model.graph.input, *model.graph.output):
        value.name = plain[value.name]
    for node in model.graph.node:
        node.input[:] = [plain.get(name, name) for name in node.input]
        node.output[:] = [plain.get(name, name) for name in node.output]


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove constants that no node takes, such as those of the other kernel; runtimes warn of them."""
    taken = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in taken]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _describe(model: onnx.ModelProto, network: onnx.ModelProto, facts: Mapping[str, object]) -> None:
    """Metadata: the core's, ours, and that the input is an image."""
    import onnx

    core = {prop.key: prop.value for prop in network.metadata_props}
    ours = {f"autoft.{name}": json.dumps(value, allow_nan=False) for name, value in facts.items()}
    onnx.helper.set_model_props(model, core | ours | _WINDOWS_ML)
    del model.opset_import[1:]  # merging lists the same one for each part
    model.graph.input[0].type.denotation = "IMAGE"
    model.graph.name = "autoft"
    model.producer_name = "autoft"
