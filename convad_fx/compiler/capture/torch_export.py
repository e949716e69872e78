"""Capture by torch.export: follows control flow on shapes, and holds for one image size."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Iterator

import torch
import torch.fx
from torch import Tensor, nn

from convad_fx.compiler.capture.module_tree import copy_tree
from convad_fx.errors import UntraceableModel, first_line


def capture_by_export(model: nn.Module, example: Tensor) -> tuple[torch.fx.Graph, nn.Module]:
    """The model's graph of aten operations, for any batch size, and the tree of its parameters.

    Raises:
        UntraceableModel: torch.export fails; its message.
    """
    pair = example.detach().expand(2, *example.shape[1:]) if example.shape[0] == 1 else example
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                model, (pair,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
            exported = program.module(check_guards=False)
    except Exception as error:  # torch.export passes on whatever the model raises
        raise UntraceableModel(
            f"torch.export cannot capture {type(model).__name__} for any batch size:"
            f" {first_line(error, with_type=True)}",
            hint="its forward branches on values at run time",
        ) from error
    graph = exported.graph
    tree = copy_tree(model, lambda *_: False)
    known = {name for name, _ in (*tree.named_parameters(remove_duplicate=False),
                                  *tree.named_buffers(remove_duplicate=False))}  # fmt: skip
    for node in graph.nodes:
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence logs, warnings and prints: exporters print whole graphs when they fail."""
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
