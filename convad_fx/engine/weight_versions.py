"""Versions of a network's weights, to invalidate cached results."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class WeightVersions:
    """Identity, address and version counter of every parameter and buffer.

    Equal as long as nothing was assigned, loaded or changed in place. Writes through
    ``tensor.data`` go unnoticed, since torch does not count them.
    """

    tensors: tuple[weakref.ref[Tensor], ...]
    versions: tuple[tuple[int, int | None], ...]

    @classmethod
    def of(cls, network: Callable[..., Any]) -> WeightVersions | None:
        """None where changes cannot be detected: inference-mode tensors have no version counter."""
        if not isinstance(network, nn.Module):
            return cls((), ())
        tensors, versions = _weights(network), weight_versions(network)
        if any(version is None for _, version in versions):
            return None
        return cls(tuple(map(weakref.ref, tensors)), versions)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, WeightVersions)
            and self.versions == other.versions
            and all(a() is b() for a, b in zip(self.tensors, other.tensors, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


def weight_versions(network: nn.Module) -> tuple[tuple[int, int | None], ...]:
    """Address and version counter of every weight; inference-mode tensors have no counter."""
    weights = _weights(network)
    return tuple((t.data_ptr(), None if t.is_inference() else t._version) for t in weights)


def _weights(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
