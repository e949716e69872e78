"""Operations that draw random numbers."""

from __future__ import annotations

import torch
import torch.fx

from convad_fx.compiler.capture.node_facts import Problem, facts

_NAMES = """
    rand randn randint randperm normal bernoulli multinomial poisson rand_like randn_like
    randint_like uniform exponential geometric log_normal cauchy random
""".split()  # noqa: SIM905


def random_numbers(graph: torch.fx.Graph) -> tuple[Problem, ...]:
    """A problem for every operation that draws random numbers, whether it reads the image or not.

    The results of two calls could not be compared.
    """
    functions = {getattr(torch, name) for name in _NAMES if hasattr(torch, name)}
    methods = {name for plain in _NAMES for name in (plain, f"{plain}_")}

    def draws(node: torch.fx.Node) -> bool:
        if isinstance(node.target, torch._ops.OpOverload):
            return node.target.overloadpacket.__name__ in methods
        return node.target in (methods if node.op == "call_method" else functions)

    return tuple(
        Problem(
            node.name,
            facts(node).path,
            "draws random numbers, so the result differs from call to call",
            "draw them once, outside forward",
        )
        for node in graph.nodes
        if draws(node)
    )
