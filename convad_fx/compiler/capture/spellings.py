"""The table of operations: how each kind is written, and the names of its parameters.

The same convolution is a module, a function or (from torch.export) an aten overload. A row of
`SPELLINGS` lists all spellings of one kind of operation and its parameters, in order; modules have
them as attributes of the same names.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True, slots=True)
class Signature:
    """Parameter names in order, with defaults.

    >>> Signature.parse("input dim=-1").bind(("x",), {})
    {'dim': -1, 'input': 'x'}
    """

    names: tuple[str, ...]
    defaults: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Signature:
        """From words ``name`` or ``name=default``; a last ``*name`` takes the remaining ones."""
        names, defaults = [], {}
        for word in text.split():
            name, _, default = word.partition("=")
            names.append(name)
            if default:
                defaults[name] = ast.literal_eval(default)
        return cls(tuple(names), defaults)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name. A last name with a star takes the remaining ones, as a tuple."""
        kwargs = {self._own_name(name): value for name, value in kwargs.items()}
        bound = dict(self.defaults)
        if self.names and self.names[-1].startswith("*"):
            *fixed, rest = self.names
            bound |= dict(zip(fixed, args, strict=False))
            more = args[len(fixed) :]
            bound[rest[1:]] = more[0] if len(more) == 1 and _is_list(more[0]) else tuple(more)
            if not more and rest[1:] not in kwargs:
                bound[rest[1:]] = ()
        else:
            bound |= dict(zip(self.names, args, strict=False))
        return bound | kwargs

    def _own_name(self, keyword: str) -> str:
        plain = {name.removeprefix("*") for name in self.names}
        own = _SYNONYMS.get(keyword, keyword)
        return own if own in plain and keyword not in plain else keyword


#: Other names of parameters in torch, among them NumPy's -> their name in `SPELLINGS`.
_SYNONYMS = {
    **dict.fromkeys(("self", "x", "a", "x1", "A", "tensor", "tensors", "data"), "input"),
    **dict.fromkeys(("x2", "exponent", "end", "mask", "tensor1"), "other"),
    **dict.fromkeys(("condition", "weight", "tensor2"), "third"),
    "axis": "dim",
    "axes": "dims",
    "axis0": "dim0",
    "axis1": "dim1",
    "keepdims": "keepdim",
    "size": "shape",
}


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple | list | torch.Size)


@dataclass(frozen=True, slots=True)
class Spelling:
    """One kind of operation: its parameters, and all names it has. Names are separated by spaces.

    Attributes:
        kind: its name, and that of its rule.
        signature: parameter names in order, see `Signature`.
        modules: classes in torch.nn. ``#d`` stands for 1d, 2d and 3d, here and in functions.
        functions: names in torch.nn.functional, torch, torch.special and aten, if they exist there.
        methods, attributes: of tensors.
        others: function objects.
        foreign, foreign_functions: qualified names of module classes and of functions in other
            packages, which need not be installed and are not imported.
    """

    kind: str
    signature: str
    modules: str = ""
    functions: str = ""
    methods: str = ""
    others: tuple[Any, ...] = ()
    foreign: str = ""
    foreign_functions: str = ""
    attributes: str = ""

    def all_modules(self) -> list[type[nn.Module]]:
        """The module classes that exist in this version of torch."""
        return [getattr(nn, name) for name in _names(self.modules) if hasattr(nn, name)]

    def all_functions(self) -> list[Any]:
        """The functions and aten overloads that exist in this version of torch."""
        functions = list(self.others)
        for name in _names(self.functions):
            functions += [getattr(home, name) for home in _HOMES if hasattr(home, name)]
            functions += aten(name)
        return functions


_HOMES = (F, torch, torch.special, torch._C._nn)


def _names(text: str) -> list[str]:
    return [
        name.replace("#d", f"{d}d")
        for name in text.split()
        for d in ("123" if "#" in name else "1")
    ]


def aten(name: str) -> list[Any]:
    """Every overload of an aten operation, if it exists in this version of torch."""
    packet = getattr(torch.ops.aten, name, None)
    return [getattr(packet, overload) for overload in packet.overloads()] if packet else []


_SAME_CELL = """
    relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid tanh hardsigmoid hardswish hardtanh
    softplus softsign logsigmoid softshrink hardshrink tanhshrink threshold prelu exp expm1
    log log1p log2 log10 sqrt rsqrt square abs absolute neg negative positive reciprocal sign sin
    cos tan asin acos atan sinh cosh erf erfc expit logit clamp clip clamp_min clamp_max round
    floor ceil trunc frac nan_to_num isnan isinf isfinite logical_not bitwise_not detach clone
"""
_CASTS = "contiguous to type float half bfloat16 double cpu cuda type_as int long bool"
_ATEN_SAME_CELL = "_to_copy to contiguous type_as alias lift_fresh_copy hardtanh"

#: One row per kind of operation. The order does not matter: no two rows share a spelling.
SPELLINGS: tuple[Spelling, ...] = (
    # ---- windows
    Spelling(
        "conv", "input weight bias=None stride=1 padding=0 dilation=1 groups=1", "Conv#d", "conv#d"
    ),
    Spelling(
        "conv_same",
        "input weight bias=None stride=1 padding=0 dilation=1 groups=1",
        foreign="timm.layers.conv2d_same.Conv2dSame",
    ),
    Spelling(
        "standardised_conv_same",  # its weight is computed at each call
        "input weight bias=None stride=1 padding=0 dilation=1 groups=1",
        foreign="timm.layers.std_conv.StdConv2dSame timm.layers.std_conv.ScaledStdConv2dSame",
    ),
    Spelling(
        "max_pool_same",
        "input kernel_size stride=None padding=0 dilation=1 ceil_mode=False",
        foreign="timm.layers.pool2d_same.MaxPool2dSame",
    ),
    Spelling(
        "avg_pool_same",
        "input kernel_size stride=None padding=0 ceil_mode=False count_include_pad=True",
        foreign="timm.layers.pool2d_same.AvgPool2dSame",
    ),
    Spelling(
        "conv_transpose",
        "input weight bias=None stride=1 padding=0 output_padding=0 groups=1 dilation=1",
        "ConvTranspose#d",
        "conv_transpose#d",
    ),
    Spelling(
        "max_pool",
        "input kernel_size stride=None padding=0 dilation=1 ceil_mode=False return_indices=False",
        "MaxPool#d",
        "max_pool#d",
    ),
    Spelling(
        "avg_pool",
        "input kernel_size stride=None padding=0 ceil_mode=False count_include_pad=True"
        " divisor_override=None",
        "AvgPool#d",
        "avg_pool#d",
    ),
    Spelling(
        "lp_pool",
        "input norm_type kernel_size stride=None ceil_mode=False",
        "LPPool#d",
        "lp_pool#d",
    ),
    Spelling("adaptive_avg_pool", "input output_size", "AdaptiveAvgPool#d", "adaptive_avg_pool#d"),
    Spelling(
        "adaptive_max_pool",
        "input output_size return_indices=False",
        "AdaptiveMaxPool#d",
        "adaptive_max_pool#d",
    ),
    Spelling(
        "interpolate",
        "input size=None scale_factor=None mode='nearest' align_corners=None"
        " recompute_scale_factor=None antialias=False",
        "Upsample UpsamplingNearest2d UpsamplingBilinear2d",
        "interpolate upsample",
    ),
    Spelling(
        "upsample_nearest",
        "input size *scale_factor",
        others=tuple(
            overload
            for name in ("upsample_nearest", "_upsample_nearest_exact")
            for d in "123"
            for overload in aten(f"{name}{d}d")
        ),
    ),
    Spelling(
        "upsample_linear",
        "input size align_corners *scale_factor",
        others=(
            *aten("upsample_linear1d"),
            *aten("upsample_bilinear2d"),
            *aten("_upsample_bilinear2d_aa"),
            *aten("upsample_trilinear3d"),
        ),
    ),
    Spelling(
        "upsample_bicubic",
        "input size align_corners *scale_factor",
        others=(
            *aten("upsample_bicubic2d"),
            *aten("_upsample_bicubic2d_aa"),
            *aten("_upsample_lanczos2d_aa"),
        ),
    ),
    # ---- same cell
    Spelling(
        "elementwise",
        "input *more",
        "ReLU ReLU6 LeakyReLU ELU CELU SELU GELU SiLU Mish Sigmoid Tanh Hardsigmoid Hardswish"
        " Hardtanh Softplus Softsign LogSigmoid Softshrink Hardshrink Tanhshrink Threshold"
        " PReLU Identity",
        _SAME_CELL + _ATEN_SAME_CELL,
        _SAME_CELL + _CASTS,
        (operator.neg, operator.pos, operator.abs, operator.invert, abs, round),
        attributes="data real",
    ),
    Spelling(
        "dropout",
        "input p=0.5 training=True inplace=False",
        "Dropout Dropout#d AlphaDropout FeatureAlphaDropout",
        "dropout dropout#d alpha_dropout feature_alpha_dropout feature_dropout",
    ),
    Spelling("rrelu", "input lower=0.125 upper=0.333 training=False", "RReLU", "rrelu"),
    Spelling(
        "stochastic_depth",
        "input p mode training=True",
        foreign_functions="torchvision.ops.stochastic_depth.stochastic_depth",
    ),
    Spelling(
        "constant_like",
        "input *size",
        functions="zeros_like ones_like full_like empty_like new_zeros new_ones new_full",
        methods="new_zeros new_ones new_full new_tensor",
    ),
    # ---- statistics
    Spelling(
        "batch_norm",
        "input running_mean running_var weight=None bias=None training=False momentum=0.1 eps=1e-5",
        "BatchNorm#d SyncBatchNorm",
        others=(F.batch_norm,),
        foreign="timm.layers.norm_act.BatchNormAct2d timm.layers.norm_act.SyncBatchNormAct"
        " timm.layers.norm_act.FrozenBatchNormAct2d",
    ),
    Spelling(  # torch.batch_norm and aten have the parameters in another order
        "native_batch_norm",
        "input weight bias running_mean running_var training=False momentum=0.1 eps=1e-5",
        others=(torch.batch_norm, *aten("batch_norm")),
    ),
    Spelling(
        "instance_norm",
        "input running_mean=None running_var=None weight=None bias=None use_input_stats=None"
        " momentum=0.1 eps=1e-5",
        "InstanceNorm#d",
        others=(F.instance_norm,),
    ),
    Spelling(
        "native_instance_norm",
        "input weight bias running_mean running_var use_input_stats momentum=0.1 eps=1e-5",
        others=(torch.instance_norm, *aten("instance_norm")),
    ),
    Spelling(
        "group_norm", "input num_groups weight=None bias=None eps=1e-5", "GroupNorm", "group_norm"
    ),
    Spelling(
        "layer_norm",
        "input normalized_shape weight=None bias=None eps=1e-5",
        "LayerNorm RMSNorm",
        "layer_norm rms_norm",
    ),
    Spelling(
        "local_response_norm",
        "input size alpha=0.0001 beta=0.75 k=1.0",
        "LocalResponseNorm",
        "local_response_norm",
    ),
    Spelling("normalize", "input p=2.0 dim=1 eps=1e-12", "", "normalize"),
    Spelling(
        "softmax",
        "input dim=None",
        "Softmax LogSoftmax Softmin",
        "softmax log_softmax softmin",
        "softmax log_softmax",
    ),
    Spelling("softmax2d", "input", "Softmax2d"),
    Spelling("glu", "input dim=-1", "GLU", "glu"),
    # ---- joins
    Spelling(
        "add",
        "input other alpha=1",
        "",
        "add sub subtract rsub",
        "add sub subtract __add__ __radd__ __sub__ __rsub__",
        (operator.add, operator.sub),
    ),
    Spelling(
        "mul",
        "input other rounding_mode=None",
        "",
        "mul multiply div divide true_divide floor_divide remainder fmod",
        "mul multiply div divide true_divide __mul__ __rmul__ __truediv__ __rtruediv__",
        (operator.mul, operator.truediv, operator.floordiv, operator.mod),
    ),
    Spelling("pow", "input other", "", "pow", "pow __pow__ __rpow__", (operator.pow,)),
    Spelling(
        "compare",
        "input other",
        "",
        "gt ge lt le eq ne",
        "gt ge lt le eq ne",
        (operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne),
    ),
    Spelling("addcmul", "input other third value=1", "", "addcmul addcdiv", "addcmul addcdiv"),
    Spelling(
        "logical",
        "input other",
        "",
        "logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor __and__ __or__"
        " __xor__",
        "logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor",
        (operator.and_, operator.or_, operator.xor),
    ),
    Spelling("where", "third input other", "", "where"),
    Spelling("masked_fill", "input other value", "", "masked_fill", "masked_fill"),
    Spelling("lerp", "input other third", "", "lerp", "lerp"),
    Spelling("maximum", "input other", "", "maximum fmax", "maximum fmax"),
    Spelling("minimum", "input other", "", "minimum fmin", "minimum fmin"),
    # ---- reductions
    Spelling("linear", "input weight bias=None", "Linear", "linear"),
    Spelling(
        "matmul", "input other", "", "matmul bmm mm", "matmul bmm mm __matmul__", (operator.matmul,)
    ),
    Spelling("addmm", "third input other beta=1 alpha=1", "", "addmm baddbmm", "addmm baddbmm"),
    Spelling("einsum", "equation *input", "", "einsum"),
    Spelling("mean", "input dim=None keepdim=False dtype=None", "", "mean", "mean"),
    Spelling("sum", "input dim=None keepdim=False dtype=None", "", "sum", "sum"),
    Spelling("spread", "input dim=None unbiased=True keepdim=False", "", "std var", "std var"),
    Spelling("logsumexp", "input dim keepdim=False", "", "logsumexp", "logsumexp"),
    Spelling("norm", "input p='fro' dim=None keepdim=False", "", "norm", "norm"),
    Spelling(
        "vector_norm",
        "input ord=2 dim=None keepdim=False",
        others=(torch.linalg.vector_norm, torch.linalg.norm, *aten("linalg_vector_norm")),
    ),
    Spelling("amax", "input dim=() keepdim=False", "", "amax", "amax"),
    Spelling("amin", "input dim=() keepdim=False", "", "amin", "amin"),
    Spelling("max", "input other=None keepdim=False", "", "max", "max"),
    Spelling("min", "input other=None keepdim=False", "", "min", "min"),
    # ---- layout
    Spelling(
        "reshape",
        "input *shape",
        "",
        "reshape view _unsafe_view view_as reshape_as",
        "view reshape view_as reshape_as",
    ),
    Spelling("flatten", "input start_dim=0 end_dim=-1", "", "flatten", "flatten"),
    Spelling("flatten_module", "input start_dim=1 end_dim=-1", "Flatten"),
    Spelling("unflatten", "input dim sizes", "", "unflatten", "unflatten"),
    Spelling("unflatten_module", "input dim unflattened_size", "Unflatten"),
    Spelling("permute", "input *dims", "", "permute", "permute"),
    Spelling(
        "transpose",
        "input dim0 dim1",
        "",
        "transpose swapaxes swapdims",
        "transpose swapaxes swapdims",
    ),
    Spelling("swap_last", "input", "", "adjoint mT", "adjoint", attributes="mT mH"),
    Spelling("reverse_axes", "input", "", "t numpy_T", "t", attributes="T H"),
    Spelling("movedim", "input source destination", "", "movedim moveaxis", "movedim moveaxis"),
    Spelling("squeeze", "input dim=None", "", "squeeze", "squeeze"),
    Spelling("unsqueeze", "input dim", "", "unsqueeze", "unsqueeze"),
    Spelling("expand", "input *size", "", "expand expand_as", "expand expand_as"),
    Spelling("repeat", "input *repeats", "", "tile repeat", "repeat tile"),
    Spelling("getitem", "input index", others=(operator.getitem,)),
    Spelling("slice", "input dim=0 start=None end=None step=1", others=tuple(aten("slice"))),
    Spelling("index", "input indices", others=tuple(aten("index"))),
    Spelling("index_select", "input dim index", "", "index_select", "index_select"),
    Spelling("narrow", "input dim start length", "", "narrow", "narrow"),
    Spelling("select", "input dim index", "", "select", "select"),
    Spelling("flip", "input *dims", "", "flip", "flip"),
    Spelling("chunk", "input chunks dim=0", "", "chunk tensor_split", "chunk tensor_split"),
    Spelling(
        "split", "input split_size dim=0", "", "split split_with_sizes", "split split_with_sizes"
    ),
    Spelling("unbind", "input dim=0", "", "unbind", "unbind"),
    Spelling("cat", "input dim=0", "", "cat concat concatenate"),
    Spelling("stack", "input dim=0", "", "stack"),
    Spelling("pad", "input pad mode='constant' value=None", "", "pad"),
    Spelling("constant_pad", "input padding value=0.0", "ConstantPad#d"),
    Spelling("zero_pad", "input padding", "ZeroPad#d"),
    Spelling("reflection_pad", "input padding", "ReflectionPad#d"),
    Spelling("replication_pad", "input padding", "ReplicationPad#d"),
    Spelling("circular_pad", "input padding", "CircularPad#d"),
    Spelling("pixel_shuffle", "input upscale_factor", "PixelShuffle", "pixel_shuffle"),
    Spelling("pixel_unshuffle", "input downscale_factor", "PixelUnshuffle", "pixel_unshuffle"),
    Spelling(
        "channel_shuffle",
        "input groups",
        "ChannelShuffle",
        "channel_shuffle native_channel_shuffle",
    ),
    # ---- refused
    Spelling(
        "attention",
        "input *more",
        "MultiheadAttention",
        "scaled_dot_product_attention multi_head_attention_forward",
        foreign_functions="torchvision.models.swin_transformer.shifted_window_attention",
    ),
    Spelling(
        "data_dependent",
        "input *more",
        "",
        "gather take take_along_dim sort argsort topk msort kthvalue masked_select nonzero unique"
        " scatter scatter_add median mode bincount searchsorted"
        " argmax argmin multinomial bernoulli",
        "gather take sort argsort topk kthvalue masked_select nonzero item tolist scatter"
        " argmax argmin median mode",
    ),
    Spelling("grid_sample", "input grid", "", "grid_sample grid_sampler"),
    Spelling(
        "deform_conv",
        "input *more",
        foreign_functions="torchvision.ops.deform_conv.deform_conv2d"
        " torch._ops.torchvision.deform_conv2d.default",
    ),
    Spelling("roll", "input shifts dims=None", "", "roll", "roll"),
    Spelling(
        "cumulative",
        "input dim",
        "",
        "cumsum cumprod cummax cummin logcumsumexp diff",
        "cumsum cumprod cummax cummin diff",
    ),
    Spelling("unfold", "input *more", "Unfold Fold", "unfold fold im2col col2im", "unfold"),
    Spelling(
        "fft",
        "input *more",
        others=tuple(
            getattr(torch.fft, f"{real}{direction}{dims}")
            for real in ("", "r")
            for direction in ("fft", "ifft")
            for dims in ("", "2", "n")
            if hasattr(torch.fft, f"{real}{direction}{dims}")
        ),
    ),
)


class Tables:
    """The rows of `SPELLINGS` by module class, function, method and attribute."""

    def __init__(self, rows: Iterable[Spelling]) -> None:
        self.modules: dict[type[nn.Module], Spelling] = {}
        self.foreign: dict[str, Spelling] = {}
        self.functions: dict[Any, Spelling] = {}
        self.methods: dict[str, Spelling] = {}
        self.attributes: dict[str, Spelling] = {}
        for row in rows:
            _enter(self.modules, row.all_modules(), row)
            _enter(self.foreign, f"{row.foreign} {row.foreign_functions}".split(), row)
            _enter(self.functions, row.all_functions(), row)
            _enter(self.methods, row.methods.split(), row)
            _enter(self.attributes, row.attributes.split(), row)

    def of_module(self, module: nn.Module) -> Spelling | None:
        """The row of a module's class or base class.

        A subclass that changes ``forward`` does not get here: capture traces into it.
        """
        for base in type(module).__mro__:
            if (name := f"{base.__module__}.{base.__qualname__}") in self.foreign:
                return self.foreign[name]
            if base in self.modules:
                return self.modules[base]
        return None

    def of_function(self, function: Any) -> Spelling | None:
        """The row of a function or aten overload; of other packages' functions by their name."""
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}"
        return self.functions.get(function) or self.foreign.get(name)


def _enter(table: dict[Any, Spelling], keys: Iterable[Any], row: Spelling) -> None:
    for key in keys:
        if table.setdefault(key, row) is not row:
            raise ValueError(f"{key} is a spelling of both {table[key].kind} and {row.kind}")


TABLES = Tables(SPELLINGS)
