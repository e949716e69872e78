"""Capture by torch.export: follows control flow on shapes, and holds for one image size."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch._subclasses import fake_tensor

from convad_fx.compiler.capture.module_tree import copy_tree, unreadable_name
from convad_fx.compiler.capture.requirements import autocast_region
from convad_fx.compiler.capture.threads import TRACING
from convad_fx.errors import UntraceableModel, first_line

#: Constants of up to this many elements have values while exporting, so that forward may decide by
#: them, as torchvision's Normalize does: ``if (std == 0).any()``. torch's own bound is 1.
CONSTANT_SIZE = 4096


def capture_by_export(model: nn.Module, example: Tensor) -> tuple[torch.fx.Graph, nn.Module]:
    """The model's graph of aten operations, for any batch size, and the tree of its parameters.

    Raises:
        UntraceableModel: torch.export fails; its message.
    """
    pair = example.detach().expand(2, *example.shape[1:]) if example.shape[0] == 1 else example
    try:
        with quiet(), torch.no_grad(), _valued_constants():
            program = torch.export.export(
                _twin(model), (pair,), dynamic_shapes=_any_batch(model), strict=False
            )
            exported = program.module(check_guards=False)
    except Exception as error:  # torch.export passes on whatever the model raises
        name = unreadable_name(model)
        raise UntraceableModel(
            f"torch.export cannot capture {type(model).__name__} for any batch size:"
            f" {first_line(error, with_type=True)}",
            hint="its forward branches on values at run time"
            if name is None
            else f"{name} has a name that Python or torch uses; rename it, or pass"
            ' front_end="symbolic"',
        ) from error
    graph = exported.graph
    tree = copy_tree(model, lambda *_: False)
    known = {name for name, _ in (*tree.named_parameters(remove_duplicate=False),
                                  *tree.named_buffers(remove_duplicate=False))}  # fmt: skip
    for node in list(graph.nodes):
        if node.op == "call_function" and isinstance(node.target, HigherOrderOperator):
            _inline_region(node, exported)
    for node in graph.nodes:
        decided = node.target is torch.ops.aten.item.default and not node.users
        if decided or node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.op == "get_attr" and node.target not in known:
            name = str(node.target).replace(".", "_")
            constant = operator.attrgetter(str(node.target))(exported)
            tree.register_buffer(name, constant, persistent=False)
            node.target = name
        elif node.op == "output" and len(node.args[0]) == 1:
            node.args = (node.args[0][0],)  # torch.export returns a list of outputs
    graph.set_codegen(torch.fx.graph.CodeGen())
    return graph, tree


def _any_batch(model: nn.Module) -> Any:
    """The shapes of forward's arguments, the first axis of the image free."""
    first = next(iter(inspect.signature(model.forward).parameters.values()))
    shape = {0: torch.export.Dim.DYNAMIC}
    return ((shape,),) if first.kind is first.VAR_POSITIONAL else (shape,)


def _twin(model: nn.Module) -> nn.Module:
    """The same modules with registries of their own, in which torch.export may replace weights.

    Other threads may run the model meanwhile.
    """
    copies: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        twin = copies[module] = object.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    for module, twin in copies.items():
        twin._modules = {
            name: None if child is None else copies[child]
            for name, child in module._modules.items()
        }
    return copies[model]


def _inline_region(node: torch.fx.Node, root: nn.Module) -> None:
    """Replace a region, such as of `torch.no_grad`, by the operations inside.

    Raises:
        UntraceableModel: it is an autocast region that has an effect, or of another kind.
    """
    kind, args = str(node.target), list[Any](node.args)
    if kind == "wrap_with_autocast":
        device, dtype, enabled, _, body, *operands = args
        if enabled:
            raise autocast_region(device, dtype or torch.get_autocast_dtype(device))
    elif kind == "wrap_with_set_grad_enabled":
        _, body, *operands = args
    else:
        raise UntraceableModel(
            f"forward uses {kind}, which is decided at run time",
            hint="remove it from forward for explaining",
        )
    region = operator.attrgetter(str(body.target))(root).graph
    with node.graph.inserting_before(node):
        copies = dict(zip(region.find_nodes(op="placeholder"), operands, strict=True))
        outputs: Any = node.graph.graph_copy(region, copies)
    for user in list(node.users):  # a region returns a tuple
        index: Any = user.args[1]
        user.replace_all_uses_with(outputs[index])
        node.graph.erase_node(user)
    node.graph.erase_node(node)
    if not body.users:
        node.graph.erase_node(body)


@contextlib.contextmanager
def _valued_constants() -> Iterator[None]:
    before = fake_tensor.CONSTANT_NUMEL_LIMIT
    fake_tensor.CONSTANT_NUMEL_LIMIT = CONSTANT_SIZE
    try:
        yield
    finally:
        fake_tensor.CONSTANT_NUMEL_LIMIT = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence logs, warnings and prints: exporters print whole graphs when they fail.

    For all threads, therefore in one at a time.
    """
    with TRACING:
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                warnings.simplefilter("ignore")  # about torch's own deprecations
                yield
        finally:
            logging.disable(before)
