"""What capture knows of each node of a graph: its path in the model, its shape and its dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch.utils._pytree import tree_leaves

#: The key of ``node.meta`` under which a node's `Facts` are stored.
META = "convad"

#: Batch size of the shape propagation: a prime that is unlikely to be the width of a layer, so that
#: an axis into which the batch was merged can be recognised.
BATCH = 13


@dataclass(frozen=True, slots=True)
class TensorFact:
    """Shape and dtype of a tensor in the graph, for a batch of `BATCH`."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Facts:
    """What capture knows of one node.

    Attributes:
        path: the operation's dotted path in the model: ``layer1.0.add``.
        value: `TensorFact`, a tuple of them, or the plain value (a size, a number) for the example.
        name: in a copy of the graph, the name of the original node, by which a plan identifies it.
            The copy's own name may differ, because a model may have a module called ``mask``.
    """

    path: str
    value: Any
    name: str = ""

    @property
    def is_tensor(self) -> bool:
        """The value is one tensor."""
        return isinstance(self.value, TensorFact)

    @property
    def has_tensors(self) -> bool:
        """The value is a tensor or contains one."""
        return any(isinstance(leaf, TensorFact) for leaf in tree_leaves(self.value))

    @property
    def shape(self) -> Any:
        """A shape, a tuple of shapes, or None."""
        if isinstance(self.value, TensorFact):
            return self.value.shape
        if self.has_tensors:
            return tuple(
                leaf.shape if isinstance(leaf, TensorFact) else None
                for leaf in tree_leaves(self.value)
            )
        return None


def facts(node: torch.fx.Node) -> Facts:
    """The `Facts` of a captured node."""
    known: Facts = node.meta[META]
    return known


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason to refuse the model that capture sees, and the rule of one operation does not."""

    node: str
    path: str
    why: str
    hint: str
