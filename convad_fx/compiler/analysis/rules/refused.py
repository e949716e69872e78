"""Operations whose reach depends on values, or is the whole grid: refused, each with its reason."""

from __future__ import annotations

from convad_fx.compiler.analysis.rules.registry import rule
from convad_fx.compiler.analysis.steps import Refused, Step
from convad_fx.compiler.capture.op_schema import OpView

#: kind -> why, and what to do about it.
_REFUSED = {
    "attention": (
        "attention lets every position read every other, by weights that depend on the image",
        "ConvAD is defined for convolutional networks; transformers need masked attention instead",
    ),
    "grid_sample": (
        "it samples at computed positions, so what an output element reads is not known",
        "use interpolate where the grid is regular",
    ),
    "deform_conv": (
        "its offsets depend on the image, so no kernel bounds what an output element reads",
        "use a plain convolution",
    ),
    "roll": (
        "it moves elements across the border to the other side, where the network treats them as"
        " neighbours",
        "use padding_mode='circular' where a torus is meant",
    ),
    "cumulative": (
        "every element reads all elements before it along an axis, so no window bounds it",
        "use a convolution or a pooling operation",
    ),
    "unfold": (
        "it writes each window out as channels; an element then appears at several positions",
        "use a convolution, or pixel_unshuffle where windows do not overlap",
    ),
    "fft": ("a Fourier transform spreads every element over the whole grid", "use convolutions"),
}


@rule(*_REFUSED)
def refused(op: OpView) -> Step:
    return Refused(*_REFUSED[op.kind])


@rule("data_dependent")
def data_dependent(op: OpView) -> Step:
    return Refused(
        f"{op.spelling} selects elements by value, so what an output element reads is not known"
        " beforehand",
        "remove it, or give it indices that do not depend on the image",
    )
