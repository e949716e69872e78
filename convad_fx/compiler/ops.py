"""One normal form for every spelling of an operation.

The same convolution is a module, a function or (from torch.export) an aten overload; a rule sees an
`OpView` with named parameters and never ``args[3]``. A row of `SPELLINGS` lists how an operation is
written and the names of its parameters, in order; modules carry them as attributes of those names.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
import torchvision.ops
from torchvision.models import swin_transformer
from torch import nn

from convad_fx.compiler.trace import facts


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor parameter of an operation, as a rule sees it.

    ``masked``: it depends on the image, so it has an activity. ``node`` is its name in the graph,
    and ``item`` its place where that node gives several tensors.
    """

    shape: tuple[int, ...]
    masked: bool = False
    node: str = ""
    item: int | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True, slots=True)
class OpView:
    """One operation in normal form: ``op.stride``, ``op.input.shape``, whatever the spelling.

    Attributes:
        kind: the row of `SPELLINGS`; also the name of its rule.
        path: dotted path in the model, as a person would type it.
        spelling: what the model's author wrote: ``Conv2d``, ``torch.flatten``, ``.view()``.
        params: parameters by name; tensors are `TensorView`.
        output: the output's shape, or a tuple of shapes; None where it is not a tensor.
        sized: names of the parameters whose value came from the example's sizes.
        node: its name in the graph.
    """

    kind: str
    path: str
    spelling: str
    params: Mapping[str, Any]
    output: Any = None
    node: str = ""
    sized: frozenset[str] = field(default=frozenset())

    def __getattr__(self, name: str) -> Any:
        try:
            return self.params[name]
        except KeyError:
            raise AttributeError(f"{self.kind} has no parameter {name!r}") from None

    def get(self, name: str, default: Any = None) -> Any:
        """A parameter, or the default where this spelling does not have it."""
        value = self.params.get(name)
        return default if value is None else value

    def masked(self) -> Iterator[tuple[str, TensorView]]:
        """The parameters that depend on the image, lists of tensors one by one."""
        for name, value in self.params.items():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, TensorView) and item.masked:
                    yield name, item


@dataclass(frozen=True, slots=True)
class Signature:
    """Parameter names in order, with defaults: ``Signature.parse("input dim=-1")``."""

    names: tuple[str, ...]
    defaults: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Signature:
        names, defaults = [], {}
        for word in text.split():
            name, _, default = word.partition("=")
            names.append(name)
            if default:
                defaults[name] = ast.literal_eval(default)
        return cls(tuple(names), defaults)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name. A last name with a star takes all that follow, as a tuple."""
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
        return bound | dict(kwargs)


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple | list | torch.Size)


@dataclass(frozen=True, slots=True)
class Spelling:
    """How one kind of operation is written."""

    kind: str
    signature: str
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Any, ...] = ()
    methods: tuple[str, ...] = ()


def _every(name: str, *dims: int) -> tuple[type[nn.Module], ...]:
    return tuple(getattr(nn, f"{name}{d}d") for d in dims or (1, 2, 3))


def _aten(*names: str) -> tuple[Any, ...]:
    """Every overload of these aten operations that this torch has."""
    found = []
    for name in names:
        packet = getattr(torch.ops.aten, name, None)
        if packet is not None:
            found += [getattr(packet, overload) for overload in packet.overloads()]
    return tuple(found)


def _plain(*names: str) -> tuple[Any, ...]:
    """Functions of these names in torch, torch.nn.functional and torch._C._nn, as far as they exist."""
    homes = (torch, F, getattr(torch._C, "_nn", None), torch.special)
    return tuple(
        dict.fromkeys(
            getattr(home, name) for home in homes for name in names if hasattr(home, name)
        )
    )


_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Softsign,
    nn.LogSigmoid, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.Threshold, nn.RReLU, nn.PReLU,
    nn.Identity,
)  # fmt: skip
_ELEMENTWISE = (
    "relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid tanh hardsigmoid hardswish hardtanh "
    "softplus softsign logsigmoid softshrink hardshrink tanhshrink threshold prelu exp expm1 log log1p "
    "log2 log10 sqrt rsqrt square abs neg negative reciprocal sign sin cos tan asin acos atan sinh cosh "
    "erf erfc clamp clip clamp_min clamp_max round floor ceil trunc frac nan_to_num logit sigmoid_ "
    "isnan isinf isfinite logical_not bitwise_not positive absolute expit hardtanh_ detach clone"
).split()
_UNARY_METHODS = (
    "contiguous to type float half bfloat16 double detach clone cpu cuda type_as requires_grad_ "
    "int long bool"
).split()

#: One row per kind of operation. The order does not matter: no two rows share a spelling.
SPELLINGS: tuple[Spelling, ...] = (
    # ---- windows
    Spelling(
        "conv",
        "input weight bias=None stride=1 padding=0 dilation=1 groups=1",
        _every("Conv"),
        (*_plain("conv1d", "conv2d", "conv3d"), *_aten("conv1d", "conv2d", "conv3d")),
    ),
    Spelling(
        "conv_transpose",
        "input weight bias=None stride=1 padding=0 output_padding=0 groups=1 dilation=1",
        _every("ConvTranspose"),
        (
            *_plain("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
            *_aten("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        ),
    ),
    Spelling(
        "max_pool",
        "input kernel_size stride=None padding=0 dilation=1 ceil_mode=False return_indices=False",
        _every("MaxPool"),
        (
            *_plain("max_pool1d", "max_pool2d", "max_pool3d"),
            *_aten("max_pool1d", "max_pool2d", "max_pool3d"),
        ),
    ),
    Spelling(
        "avg_pool",
        "input kernel_size stride=None padding=0 ceil_mode=False count_include_pad=True"
        " divisor_override=None",
        _every("AvgPool"),
        (
            *_plain("avg_pool1d", "avg_pool2d", "avg_pool3d"),
            *_aten("avg_pool1d", "avg_pool2d", "avg_pool3d"),
        ),
    ),
    Spelling(
        "lp_pool",
        "input norm_type kernel_size stride=None ceil_mode=False",
        _every("LPPool"),
        _plain("lp_pool1d", "lp_pool2d", "lp_pool3d"),
    ),
    Spelling(
        "adaptive_avg_pool",
        "input output_size",
        _every("AdaptiveAvgPool"),
        (
            *_plain("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
            *_aten("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        ),
    ),
    Spelling(
        "adaptive_max_pool",
        "input output_size return_indices=False",
        _every("AdaptiveMaxPool"),
        (
            *_plain("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
            *_aten("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
        ),
    ),
    Spelling(
        "interpolate",
        "input size=None scale_factor=None mode='nearest' align_corners=None"
        " recompute_scale_factor=None antialias=False",
        (nn.Upsample,),
        (F.interpolate, F.upsample),
    ),
    # ---- same cell
    Spelling(
        "elementwise",
        "input *more",
        _ACTIVATIONS,
        (*_plain(*_ELEMENTWISE), *_aten(*_ELEMENTWISE), operator.neg, operator.pos, operator.abs,
         operator.invert, abs, round),
        (*_ELEMENTWISE, *_UNARY_METHODS),
    ),
    Spelling(
        "dropout",
        "input p=0.5 training=True inplace=False",
        (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
        (
            *_plain("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
                    "feature_alpha_dropout", "feature_dropout"),
            *_aten("dropout"),
        ),
    ),
    Spelling(
        "stochastic_depth",
        "input p mode training=True",
        (),
        (torchvision.ops.stochastic_depth,),
    ),
    Spelling(
        "constant_like",
        "input *size",
        (),
        (*_plain("zeros_like", "ones_like", "full_like", "empty_like"),
         *_aten("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")),
        ("new_zeros", "new_ones", "new_full", "new_tensor"),
    ),
    # ---- statistics
    Spelling(
        "batch_norm",
        "input running_mean running_var weight=None bias=None training=False momentum=0.1 eps=1e-05",
        (*_every("BatchNorm"), nn.SyncBatchNorm),
        (*_plain("batch_norm"), *_aten("batch_norm")),
    ),
    Spelling(
        "instance_norm",
        "input running_mean=None running_var=None weight=None bias=None use_input_stats=True"
        " momentum=0.1 eps=1e-05",
        _every("InstanceNorm"),
        (*_plain("instance_norm"), *_aten("instance_norm")),
    ),
    Spelling(
        "group_norm",
        "input num_groups weight=None bias=None eps=1e-05",
        (nn.GroupNorm,),
        (*_plain("group_norm"), *_aten("group_norm")),
    ),
    Spelling(
        "layer_norm",
        "input normalized_shape weight=None bias=None eps=1e-05",
        (nn.LayerNorm, nn.RMSNorm),
        (*_plain("layer_norm", "rms_norm"), *_aten("layer_norm", "rms_norm")),
    ),
    Spelling(
        "local_response_norm",
        "input size alpha=0.0001 beta=0.75 k=1.0",
        (nn.LocalResponseNorm,),
        _plain("local_response_norm"),
    ),
    Spelling("normalize", "input p=2.0 dim=1 eps=1e-12", (), (F.normalize,)),
    Spelling(
        "softmax",
        "input dim=None",
        (nn.Softmax, nn.LogSoftmax, nn.Softmin),
        (*_plain("softmax", "log_softmax", "softmin"), *_aten("softmax", "log_softmax")),
        ("softmax", "log_softmax"),
    ),
    Spelling("softmax2d", "input", (nn.Softmax2d,)),
    Spelling("glu", "input dim=-1", (nn.GLU,), (*_plain("glu"), *_aten("glu"))),
    # ---- joins
    Spelling(
        "add",
        "input other alpha=1",
        (),
        (operator.add, *_plain("add", "sub", "subtract", "rsub"), operator.sub,
         *_aten("add", "sub", "rsub")),
        ("add", "sub", "subtract", "__add__", "__radd__", "__sub__", "__rsub__"),
    ),
    Spelling(
        "mul",
        "input other rounding_mode=None",
        (),
        (operator.mul, operator.truediv, operator.floordiv, operator.mod,
         *_plain("mul", "multiply", "div", "divide", "true_divide", "floor_divide", "remainder"),
         *_aten("mul", "div")),
        ("mul", "multiply", "div", "divide", "true_divide", "__mul__", "__rmul__", "__truediv__",
         "__rtruediv__"),
    ),
    Spelling(
        "pow", "input other", (), (operator.pow, *_plain("pow"), *_aten("pow")), ("pow", "__pow__")
    ),
    Spelling(
        "compare",
        "input other",
        (),
        (operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne,
         *_plain("gt", "ge", "lt", "le", "eq", "ne"), *_aten("gt", "ge", "lt", "le", "eq", "ne")),
        ("gt", "ge", "lt", "le", "eq", "ne"),
    ),
    Spelling("maximum", "input other", (), (*_plain("maximum", "fmax"), *_aten("maximum", "fmax")), ("maximum", "fmax")),
    Spelling("minimum", "input other", (), (*_plain("minimum", "fmin"), *_aten("minimum", "fmin")), ("minimum", "fmin")),
    # ---- reductions
    Spelling(
        "linear", "input weight bias=None", (nn.Linear,), (*_plain("linear"), *_aten("linear"))
    ),
    Spelling(
        "mean",
        "input dim=None keepdim=False dtype=None",
        (),
        (*_plain("mean"), *_aten("mean")),
        ("mean",),
    ),
    Spelling(
        "sum",
        "input dim=None keepdim=False dtype=None",
        (),
        (*_plain("sum"), *_aten("sum")),
        ("sum",),
    ),
    Spelling(
        "spread",
        "input dim=None unbiased=True keepdim=False",
        (),
        (*_plain("std", "var", "logsumexp"), *_aten("std", "var", "logsumexp")),
        ("std", "var", "logsumexp"),
    ),
    Spelling(
        "norm",
        "input p='fro' dim=None keepdim=False",
        (),
        (*_plain("norm"),),
        ("norm",),
    ),
    Spelling(
        "vector_norm",
        "input ord=2 dim=None keepdim=False",
        (),
        (torch.linalg.vector_norm, torch.linalg.norm),
    ),
    Spelling("amax", "input dim=() keepdim=False", (), (*_plain("amax"), *_aten("amax")), ("amax",)),
    Spelling("amin", "input dim=() keepdim=False", (), (*_plain("amin"), *_aten("amin")), ("amin",)),
    Spelling("max", "input other=None keepdim=False", (), (*_plain("max"), *_aten("max")), ("max",)),
    Spelling("min", "input other=None keepdim=False", (), (*_plain("min"), *_aten("min")), ("min",)),
    # ---- layout
    Spelling(
        "reshape",
        "input *shape",
        (),
        (*_plain("reshape"), *_aten("reshape", "view", "_unsafe_view")),
        ("view", "reshape", "view_as", "reshape_as"),
    ),
    Spelling(
        "flatten",
        "input start_dim=0 end_dim=-1",
        (),
        (*_plain("flatten"), *_aten("flatten")),
        ("flatten",),
    ),
    Spelling("flatten_module", "input start_dim=1 end_dim=-1", (nn.Flatten,)),
    Spelling(
        "unflatten",
        "input dim sizes",
        (),
        (*_plain("unflatten"), *_aten("unflatten")),
        ("unflatten",),
    ),
    Spelling("unflatten_module", "input dim unflattened_size", (nn.Unflatten,)),
    Spelling("permute", "input *dims", (), (*_plain("permute"), *_aten("permute")), ("permute",)),
    Spelling(
        "transpose",
        "input dim0 dim1",
        (),
        (*_plain("transpose", "swapaxes", "swapdims"), *_aten("transpose")),
        ("transpose", "swapaxes", "swapdims"),
    ),
    Spelling("movedim", "input source destination", (), (*_plain("movedim", "moveaxis"),), ("movedim", "moveaxis")),
    Spelling("squeeze", "input dim=None", (), (*_plain("squeeze"), *_aten("squeeze")), ("squeeze",)),
    Spelling("unsqueeze", "input dim", (), (*_plain("unsqueeze"), *_aten("unsqueeze")), ("unsqueeze",)),
    Spelling("expand", "input *size", (), (*_aten("expand"),), ("expand", "expand_as")),
    Spelling("repeat", "input *repeats", (), (*_plain("tile"), *_aten("repeat")), ("repeat", "tile")),
    Spelling("getitem", "input index", (), (operator.getitem,)),
    Spelling("slice", "input dim=0 start=None end=None step=1", (), _aten("slice")),
    Spelling("narrow", "input dim start length", (), (*_plain("narrow"),), ("narrow",)),
    Spelling("select", "input dim index", (), (*_plain("select"), *_aten("select")), ("select",)),
    Spelling("flip", "input *dims", (), (*_plain("flip"), *_aten("flip")), ("flip",)),
    Spelling(
        "chunk",
        "input chunks dim=0",
        (),
        (*_plain("chunk", "tensor_split"), *_aten("chunk", "tensor_split")),
        ("chunk", "tensor_split"),
    ),
    Spelling(
        "split",
        "input split_size dim=0",
        (),
        (*_plain("split", "split_with_sizes"), *_aten("split", "split_with_sizes")),
        ("split", "split_with_sizes"),
    ),
    Spelling("unbind", "input dim=0", (), (*_plain("unbind"), *_aten("unbind")), ("unbind",)),
    Spelling(
        "cat", "input dim=0", (), (*_plain("cat", "concat", "concatenate"), *_aten("cat", "concat"))
    ),
    Spelling("stack", "input dim=0", (), (*_plain("stack"), *_aten("stack"))),
    Spelling(
        "pad",
        "input pad mode='constant' value=None",
        (),
        (F.pad, *_aten("pad")),
    ),
    Spelling("constant_pad", "input padding value=0.0", _every("ConstantPad")),
    Spelling("zero_pad", "input padding", tuple(getattr(nn, f"ZeroPad{d}d") for d in (1, 2, 3) if hasattr(nn, f"ZeroPad{d}d"))),
    Spelling("reflection_pad", "input padding", _every("ReflectionPad")),
    Spelling("replication_pad", "input padding", _every("ReplicationPad")),
    Spelling("circular_pad", "input padding", tuple(getattr(nn, f"CircularPad{d}d") for d in (1, 2, 3) if hasattr(nn, f"CircularPad{d}d"))),
    Spelling("pixel_shuffle", "input upscale_factor", (nn.PixelShuffle,), (*_plain("pixel_shuffle"), *_aten("pixel_shuffle"))),
    Spelling("pixel_unshuffle", "input downscale_factor", (nn.PixelUnshuffle,), (*_plain("pixel_unshuffle"), *_aten("pixel_unshuffle"))),
    Spelling("channel_shuffle", "input groups", (nn.ChannelShuffle,), (*_plain("channel_shuffle", "native_channel_shuffle"), *_aten("channel_shuffle"))),
    # ---- refused, each for a reason of its own
    Spelling(
        "attention",
        "input *more",
        (nn.MultiheadAttention,),
        (*_plain("scaled_dot_product_attention"), F.multi_head_attention_forward,
         swin_transformer.shifted_window_attention,
         *_aten("scaled_dot_product_attention")),
    ),
    Spelling(
        "matmul",
        "input other",
        (),
        (operator.matmul, *_plain("matmul", "bmm", "mm", "einsum", "baddbmm", "addmm"),
         *_aten("matmul", "bmm", "mm", "einsum", "baddbmm", "addmm")),
        ("matmul", "bmm", "mm", "__matmul__"),
    ),
    Spelling(
        "data_dependent",
        "input *more",
        (),
        (*_plain("gather", "take", "take_along_dim", "sort", "argsort", "topk", "msort", "kthvalue",
                 "masked_select", "nonzero", "unique", "scatter", "scatter_add", "where", "median", "mode",
                 "masked_fill", "bincount", "searchsorted", "index_select", "argmax", "argmin",
                 "multinomial", "bernoulli"),
         *_aten("gather", "sort", "topk", "masked_select", "nonzero", "index", "scatter", "where",
                "argmax", "argmin", "index_select", "masked_fill")),
        ("gather", "sort", "argsort", "topk", "masked_select", "nonzero", "item", "tolist", "scatter",
         "masked_fill", "index_select", "where", "argmax", "argmin", "median", "mode", "kthvalue", "take"),
    ),
    Spelling("grid_sample", "input grid", (), (F.grid_sample, *_aten("grid_sampler"))),
    Spelling("deform_conv", "input offset", (), (torchvision.ops.deform_conv2d,)),
    Spelling("roll", "input shifts dims=None", (), (*_plain("roll"), *_aten("roll")), ("roll",)),
    Spelling("cumulative", "input dim", (),
             (*_plain("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "diff"), *_aten("cumsum", "cumprod")),
             ("cumsum", "cumprod", "cummax", "cummin", "diff")),
    Spelling("unfold", "input *more", (nn.Unfold, nn.Fold), (F.unfold, F.fold, *_aten("im2col", "col2im", "unfold")), ("unfold",)),
    Spelling("fft", "input *more", (), tuple(getattr(torch.fft, n) for n in
             ("fft", "ifft", "rfft", "irfft", "fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn", "irfftn"))),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Tables:
    modules: dict[type[nn.Module], Spelling]
    functions: dict[Any, Spelling]
    methods: dict[str, Spelling]


def _build_tables(rows: tuple[Spelling, ...]) -> _Tables:
    tables = _Tables({}, {}, {})
    for row in rows:
        for table, keys in (
            (tables.modules, row.modules),
            (tables.functions, dict.fromkeys(row.functions)),
            (tables.methods, row.methods),
        ):
            for key in keys:
                if key in table and table[key] is not row:
                    raise ValueError(f"{key} is spelled in {table[key].kind} and in {row.kind}")
                table[key] = row  # type: ignore[index]
    return tables


_TABLES = _build_tables(SPELLINGS)


def _spelling_of_module(module: nn.Module) -> Spelling | None:
    """By class or base class: a subclass that changes ``forward`` was traced into, not kept."""
    for base in type(module).__mro__:
        if base in _TABLES.modules:
            return _TABLES.modules[base]
    return None


#: What may be asked of a tensor without reading its values.
_PLAIN_ATTRIBUTES = frozenset(
    "shape device dtype ndim is_cuda is_mps layout requires_grad is_sparse is_quantized names".split()
)
_PLAIN_METHODS = frozenset(
    "size dim ndimension numel nelement get_device is_floating_point is_complex stride is_contiguous"
    " element_size storage_offset".split()
)
_PLAIN_FUNCTIONS = frozenset(
    {len, isinstance, torch._assert, torch.numel, torch.is_tensor, torch.is_floating_point,
     *_aten("sym_size", "sym_numel", "sym_stride")}
)  # fmt: skip


def reads_no_values(node: torch.fx.Node) -> bool:
    """It asks a tensor for its shape, dtype or device only."""
    if node.op == "call_method":
        return node.target in _PLAIN_METHODS
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _PLAIN_ATTRIBUTES
    return node.target in _PLAIN_FUNCTIONS


def view(node: torch.fx.Node, root: nn.Module, masked: Callable[[torch.fx.Node], bool]) -> OpView:
    """The normal form of a node. An operation without a row gets the kind ``unknown``."""
    fact = facts(node)
    sized: set[str] = set()

    def resolve(value: Any, name: str) -> Any:
        if isinstance(value, torch.fx.Node):
            known = facts(value)
            if known.is_tensor:
                return TensorView(known.shape, masked(value), value.name)
            if known.has_tensors:  # the result of chunk, handed on as it is
                return tuple(
                    TensorView(shape, masked(value), value.name, i)
                    for i, shape in enumerate(known.shape)
                )
            sized.add(name)
            return known.value
        if isinstance(value, tuple | list):
            return tuple(resolve(item, name) for item in value)
        if isinstance(value, slice):
            return slice(*(resolve(v, name) for v in (value.start, value.stop, value.step)))
        return value

    def done(kind: str, spelling: str, bound: Mapping[str, Any]) -> OpView:
        params = {name: resolve(value, name) for name, value in bound.items()}
        return OpView(kind, fact.path, spelling, params, fact.shape, node.name, frozenset(sized))

    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        row, spelling = _spelling_of_module(module), type(module).__name__
        if row is None:
            return done("unknown", spelling, {"inputs": (*node.args, *node.kwargs.values())})
        own = {name: _attribute(module, name) for name in Signature.parse(row.signature).names[1:]}
        extra = (
            {"padding_mode": getattr(module, "padding_mode", "zeros")} if row.kind == "conv" else {}
        )
        first = node.args[0] if node.args else next(iter(node.kwargs.values()))
        more = {"more": tuple(node.args[1:])} if len(node.args) > 1 else {}
        return done(row.kind, spelling, {"input": first, **own, **extra, **more})
    if node.op == "call_method":
        row = _TABLES.methods.get(str(node.target))
        spelling = f".{node.target}()"
    else:
        row = _TABLES.functions.get(node.target)
        spelling = _function_name(node.target)
    if row is None:
        return done("unknown", spelling, {"inputs": (*node.args, *node.kwargs.values())})
    return done(row.kind, spelling, Signature.parse(row.signature).bind(node.args, node.kwargs))


def _attribute(module: nn.Module, name: str) -> Any:
    value = getattr(module, name.lstrip("*"), None)
    return TensorView(tuple(value.shape)) if isinstance(value, torch.Tensor) else value


def _function_name(target: Any) -> str:
    name = getattr(target, "__name__", str(target))
    home = (getattr(target, "__module__", "") or "").removeprefix("torch.nn.")
    return f"{home}.{name}" if home and not home.startswith(("_", "torch._")) else name
