"""The front of model.onnx, as ONNX text: from uint8 pixels of any size to the network's input, as Pillow does it.

The resize is Pillow's (`src/libImaging/Resample.c`: a pass along the rows and one along the columns, antialiased,
weights in 22-bit fixed point, rounded to 8 bits after each) written with standard operators. `Resize` of ONNX is no
substitute: with `antialias` it is up to 13/255 off.

Both passes are one matrix product. A dense one would multiply mostly by zeros, as an output pixel depends on a few
input pixels only; so output pixels go in blocks of `BLOCK`, and each block sees the stretch of input it depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from autoft.values.backbone import Interpolation
from autoft.values.handoff import Layout, Preprocess, View

OPSET: Final = 18
BLOCK: Final = 16

FUNCTION: Final = f'<domain: "local", opset_import: ["" : {OPSET}, "local" : 1]>'
"""What stands before each function of a model."""

_SHAPES: Final[Mapping[Layout, str]] = {"image": "[height, width, 3]", "batch": "[batch, height, width, 3]"}


def front(recipe: Preprocess, layout: Layout) -> str:
    """A graph and the functions it is made of, to be inlined, as not every runtime knows functions.

    The graph is the steps of `Preprocess`, one after another: what is seen, a pass along the rows, one along the
    columns, the square, and the normalisation.
    """
    shown, square = _VIEWS[recipe.view], _ON_SQUARE[recipe.view]
    steps = (_TO_BATCH[layout], _MEASURED, shown, _ALONG_ROWS, _ALONG_COLUMNS, square, _NORMALISED)
    lines = "\n".join(steps)
    return f"""
    front (uint8{_SHAPES[layout]} image) => (float[batch, 3, {recipe.size}, {recipe.size}] images)
    < {_constants(recipe)} >
    {{
        {lines}
    }}
    {_functions(recipe)}"""


def _functions(recipe: Preprocess) -> str:
    return f"""
    {FUNCTION} pass_weights (side, target) => (taken, weights_upper, weights_lower)
    {{
        {_constant("int64[1]", zero=0, one=1, two=2, rest=-1, block=BLOCK, almost=BLOCK - 1)}
        {_constant("int64", first=0, step=1)}
        {_constant("double", half=0.5, unit=1, steps=BLOCK - 1, support=_SUPPORT[recipe.interpolation])}
        {_constant("double", coarse=2**11, fixed=2**22)}
        block_shape = Constant <value = int64[3] {{-1, {BLOCK}, 1}}> ()
        {_PASS_WEIGHTS}
    }}
    {FUNCTION} kernel (x) => (weight)
    {{
        {_KERNELS[recipe.interpolation]}
    }}
    {FUNCTION} resample (source, target, taken, weights_upper, weights_lower) => (result)
    {{
        {_constant("int64[1]", zero=0, one=1, rest=-1, block=BLOCK)}
        {_constant("double", half=0.5, coarse=2**11, fixed=2**22)}
        {_constant("float", black=0, white=255)}
        {_RESAMPLE}
    }}
    {FUNCTION} placed (places, start, target) => (kept, inside)
    {{
        {_constant("int64[1]", zero=0, one=1)}
        {_PLACED}
    }}"""


def _constants(recipe: Preprocess) -> str:
    """The constants of the front, by name."""
    size, channel = recipe.size, "float[1, 3, 1, 1]"
    return f"""
        int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] three = {{3}},
        int64[1] rest = {{-1}}, int64[1] size = {{{size}}}, int64[1] twice_size = {{{2 * size}}},
        int64[2] image_axes = {{1, 2}}, int64[3] upright = {{-1, 1, 1}}, int64[2] level = {{-1, 1}},
        int64[3] line_shape = {{0, 0, -1}}, int64[3] pixel_shape = {{0, {size * size}, 3}},
        int64[4] plane_shape = {{0, 3, {size}, {size}}},
        int64[{size}] places = {{{", ".join(map(str, range(size)))}}},
        float[3] background = {{{_numbers(recipe.pad_colour)}}}, float white = {{255}},
        {channel} mean = {{{_numbers(recipe.mean)}}}, {channel} std = {{{_numbers(recipe.std)}}}"""


def _constant(kind: str, **values: float) -> str:
    """Lines of a function that name constants: in functions they are nodes."""
    return "\n".join(f"{name} = Constant <value = {kind} {{{value}}}> ()" for name, value in values.items())


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(repr(float(value)) for value in values)


# ---------------------------------------------------------------- the steps

# `pixels` `[batch, height, width, 3]`.
_TO_BATCH: Final[Mapping[Layout, str]] = {
    "image": "pixels = Unsqueeze (image, zero)",
    "batch": "pixels = Identity (image)",
}
_MEASURED: Final = """
        shape = Shape (pixels)
        height_width = Slice (shape, one, three)"""
# `narrow` `[batch, x_target, lines]` of `region`: each line, a row of one colour, is resized.
_ALONG_ROWS: Final = """
        lines = Reshape (region, line_shape)
        turned = Transpose <perm = [0, 2, 1]> (lines)
        by_column = Concat <axis = 0> (zero, width, rest)
        columns = Reshape (turned, by_column)
        narrow = local.resample (columns, x_target, x_taken, x_upper, x_lower)"""
# `small` `[batch, y_target, x_target * 3]` of it.
_ALONG_COLUMNS: Final = """
        x_values = Mul (x_target, three)
        by_value = Concat <axis = 0> (zero, x_values, rest)
        narrow_columns = Reshape (narrow, by_value)
        rows = Transpose <perm = [0, 2, 1]> (narrow_columns)
        small = local.resample (rows, y_target, y_taken, y_upper, y_lower)"""
# Step 3 of `Preprocess`.
_NORMALISED: Final = """
        channels_first = Transpose <perm = [0, 2, 1]> (square)
        planes = Reshape (channels_first, plane_shape)
        fractions = Div (planes, white)
        centred = Sub (fractions, mean)
        images = Div (centred, std)"""
# Steps 1 and 2 of `Preprocess`: what of the image is seen (`region`, of `width` columns), and for each pass, `x_` along
# a row and `y_` along a column, how many pixels it gives (`target`) and their weights.
_VIEWS: Final[Mapping[View, str]] = {
    "crop": """
        width = ReduceMin <keepdims = 1> (height_width)
        margin = Sub (height_width, width)
        start = Div (margin, two)
        stop = Add (start, width)
        region = Slice (pixels, start, stop, image_axes)
        x_target = Identity (size)
        y_target = Identity (size)
        x_taken, x_upper, x_lower = local.pass_weights (width, size)
        y_taken = Identity (x_taken)
        y_upper = Identity (x_upper)
        y_lower = Identity (x_lower)""",
    "squash": """
        region = Identity (pixels)
        height, width = Split <num_outputs = 2> (height_width)
        x_target = Identity (size)
        y_target = Identity (size)
        x_taken, x_upper, x_lower = local.pass_weights (width, size)
        y_taken, y_upper, y_lower = local.pass_weights (height, size)""",
    "pad": """
        region = Identity (pixels)
        height, width = Split <num_outputs = 2> (height_width)
        long = ReduceMax <keepdims = 1> (height_width)
        scaled = Mul (height_width, twice_size)
        raised = Add (scaled, long)
        twice_long = Add (long, long)
        rounded = Div (raised, twice_long)
        targets = Max (rounded, one)
        y_target, x_target = Split <num_outputs = 2> (targets)
        x_taken, x_upper, x_lower = local.pass_weights (width, x_target)
        y_taken, y_upper, y_lower = local.pass_weights (height, y_target)""",
}
# Gives `square` `[batch, size * size, 3]` of `small` `[batch, y_target, x_target * 3]`.
_ON_SQUARE: Final[Mapping[View, str]] = {
    "crop": "square = Reshape (small, pixel_shape)",
    "squash": "square = Reshape (small, pixel_shape)",
    "pad": """
        by_pixel = Concat <axis = 0> (zero, y_target, x_target, rest)
        small_pixels = Reshape (small, by_pixel)
        margins = Sub (size, targets)
        starts = Div (margins, two)
        y_start, x_start = Split <num_outputs = 2> (starts)
        x_kept, x_inside = local.placed (places, x_start, x_target)
        y_kept, y_inside = local.placed (places, y_start, y_target)
        wide = Gather <axis = 2> (small_pixels, x_kept)
        filled = Gather <axis = 1> (wide, y_kept)
        inside_row = Reshape (x_inside, level)
        inside_column = Reshape (y_inside, upright)
        inside = And (inside_row, inside_column)
        padded = Where (inside, filled, background)
        square = Reshape (padded, pixel_shape)""",
}

# Which of the `target` pixels of an image that begins at `start` stands at each of the square's `places`, and whether
# one does (`inside`); beside the image it is the nearest.
_PLACED: Final = """
        moved = Sub (places, start)
        not_before = Max (moved, zero)
        last = Sub (target, one)
        kept = Min (not_before, last)
        inside = Equal (kept, moved)"""

# Gives `result` `[batch, target, n]` of `source` `[batch, side, n]`, in whole numbers from 0 to 255.
_RESAMPLE: Final = """
        parts = Gather <axis = 1> (source, taken)
        floats = Cast <to = 1> (parts)
        upper = MatMul (weights_upper, floats)
        lower = MatMul (weights_lower, floats)
        upper_d = Cast <to = 11> (upper)
        lower_d = Cast <to = 11> (lower)
        scaled = Mul (upper_d, coarse)
        sums = Add (scaled, lower_d)
        divided = Div (sums, fixed)
        raised = Add (divided, half)
        floor = Floor (raised)
        whole = Cast <to = 1> (floor)
        blocks = Shape <end = 1> (taken)
        pixels = Mul (blocks, block)
        joined_shape = Concat <axis = 0> (zero, pixels, rest)
        joined = Reshape (whole, joined_shape)
        cut = Slice (joined, zero, target, one)
        result = Clip (cut, black, white)"""

# Of an image of `target` pixels in this direction, made of `side`: weights `[blocks, BLOCK, taps]` and `taken`
# `[blocks, taps]`, the input pixels they are for. Computed in double precision, then whole numbers of 2^-22, as Pillow
# has them; in two parts, since a product of 22 and 8 bits does not fit a float32 and one of 11 and 8 bits does.
# `centre` is an output pixel's place on the input, in pixels.
_PASS_WEIGHTS: Final = """
        side_d = Cast <to = 11> (side)
        target_d = Cast <to = 11> (target)
        scale = Div (side_d, target_d)
        stretch = Max (scale, unit)
        reach = Mul (support, stretch)
        target_up = Add (target, almost)
        blocks = Div (target_up, block)
        pixels = Mul (blocks, block)
        end = Squeeze (pixels)
        numbers = Range (first, end, step)
        numbers_d = Cast <to = 11> (numbers)
        middles = Add (numbers_d, half)
        places = Mul (middles, scale)
        centre = Reshape (places, block_shape)
        between = Mul (steps, scale)
        both_ends = Add (reach, reach)
        extent = Add (between, both_ends)
        extent_up = Ceil (extent)
        extent_whole = Cast <to = 7> (extent_up)
        taps_wanted = Add (extent_whole, two)
        taps = Min (taps_wanted, side)
        block_centre = Slice (centre, zero, one, one)
        block_start = Sub (block_centre, reach)
        block_floor = Floor (block_start)
        block_first = Cast <to = 7> (block_floor)
        last = Sub (side, taps)
        not_before = Max (block_first, zero)
        begin = Min (not_before, last)
        count = Squeeze (taps)
        offsets = Range (first, count, step)
        begin_flat = Squeeze (begin, two)
        taken = Add (begin_flat, offsets)
        begin_d = Cast <to = 11> (begin)
        offsets_d = Cast <to = 11> (offsets)
        from_centre = Sub (begin_d, centre)
        to_middle = Add (from_centre, half)
        position = Add (to_middle, offsets_d)
        relative = Div (position, stretch)
        x = Abs (relative)
        weight = local.kernel (x)
        total = ReduceSum <keepdims = 1> (weight, rest)
        normal = Div (weight, total)
        scaled = Mul (normal, fixed)
        rounded = Round (scaled)
        shifted = Div (rounded, coarse)
        upper = Round (shifted)
        upper_scaled = Mul (upper, coarse)
        lower = Sub (rounded, upper_scaled)
        weights_upper = Cast <to = 1> (upper)
        weights_lower = Cast <to = 1> (lower)"""
# Weights by distance x in units of the (stretched) input pixel. Without branches: beyond its stretch each part is 0.
_KERNELS: Final[Mapping[Interpolation, str]] = {
    "bilinear": f"""
        {_constant("double", unit=1, nothing=0)}
        tent = Sub (unit, x)
        weight = Max (tent, nothing)""",
    # a = -0.5: 1.5 x^3 - 2.5 x^2 + 1 up to 1, and -0.5 (x^3 - 5 x^2 + 8 x - 4) from 1 to 2.
    "bicubic": f"""
        {_constant("double", unit=1, half=0.5, two=2, c15=1.5, c25=2.5, c5=5, c8=8, c4=4)}
        near = Min (x, unit)
        near_squared = Mul (near, near)
        near_steep = Mul (near, c15)
        near_slope = Sub (near_steep, c25)
        near_bend = Mul (near_slope, near_squared)
        near_part = Add (near_bend, unit)
        from_one = Max (x, unit)
        far = Min (from_one, two)
        far_5 = Sub (far, c5)
        far_quadratic = Mul (far_5, far)
        far_8 = Add (far_quadratic, c8)
        far_cubic = Mul (far_8, far)
        far_4 = Sub (far_cubic, c4)
        far_part = Mul (far_4, half)
        weight = Sub (near_part, far_part)""",
}
_SUPPORT: Final[Mapping[Interpolation, float]] = {"bilinear": 1.0, "bicubic": 2.0}
