"""Operations whose reach depends on values: refused, each with its reason."""

from __future__ import annotations

from convad_fx.compiler.analysis.rules.registry import rule
from convad_fx.compiler.analysis.steps import Refused, Step
from convad_fx.compiler.capture.op_schema import OpView


@rule("attention")
def attention(op: OpView) -> Step:
    return Refused(
        "attention lets every position read every other, by weights that depend on the image",
        "ConvAD is defined for convolutional networks; transformers need masked attention instead",
    )


@rule("data_dependent")
def data_dependent(op: OpView) -> Step:
    return Refused(
        f"{op.spelling} picks cells by value, so what an output cell reads is not known beforehand",
        "remove it, or give it indices that do not depend on the image",
    )


@rule("grid_sample")
def grid_sample(op: OpView) -> Step:
    return Refused(
        "it samples at places that are computed, so what an output cell reads is not known",
        "use interpolate where the grid is regular",
    )


@rule("deform_conv")
def deform_conv(op: OpView) -> Step:
    return Refused(
        "its offsets depend on the image, so no kernel bounds what an output cell reads",
        "use a plain convolution",
    )


@rule("roll")
def roll(op: OpView) -> Step:
    return Refused(
        "it moves cells across the border to the other side, and the network treats them as"
        " neighbours there",
        "use padding_mode='circular' where a torus is meant",
    )


@rule("cumulative")
def cumulative(op: OpView) -> Step:
    return Refused(
        "every cell reads all cells before it along an axis, so no window bounds it",
        "use a convolution or a pooling operation",
    )


@rule("unfold")
def unfold(op: OpView) -> Step:
    return Refused(
        "it writes each window out as channels; a cell then appears at several positions",
        "use a convolution, or pixel_unshuffle where windows do not overlap",
    )


@rule("fft")
def fft(op: OpView) -> Step:
    return Refused(
        "a Fourier transform spreads every cell over the whole grid",
        "use convolutions",
    )
