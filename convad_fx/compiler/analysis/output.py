"""What the network's output is: which tensor of the result, and in which activation it ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Output:
    """The tensor of the model's result that holds the answer.

    Attributes:
        selected: how it is taken from the result.
        shape: of the tensor for the example.
        activation: in which it ends: "none", "softmax", "log_softmax" or "sigmoid".
    """

    selected: str
    shape: tuple[int, ...]
    activation: str

    @property
    def classes(self) -> int | None:
        """Its number of classes, or None where it is not (N, classes)."""
        return self.shape[1] if len(self.shape) == 2 else None
