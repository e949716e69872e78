"""Masks and maps as JSON values: run lengths, and compressed float32 values as text."""

from __future__ import annotations

import base64
import zlib

import numpy as np
from numpy.typing import NDArray

from convad_fx.errors import ConvadError
from convad_fx.explain.evaluator import Mask


class DamagedExplanation(ConvadError, ValueError):
    """A text that is not an explanation, or not one that this version can read."""


def encode_mask(mask: Mask) -> list[int]:
    """Run lengths of hidden and kept pixels (H, W) in turn, row by row, hidden first.

    >>> encode_mask(np.array([[True, True, False], [False, False, True]]))
    [0, 2, 3, 1]
    """
    flat = np.concatenate([[False], mask.ravel()])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    runs: list[int] = np.diff(np.concatenate([[0], ends, [mask.size]])).tolist()
    return runs


def decode_mask(runs: list[int], shape: tuple[int, int]) -> Mask:
    """The mask (H, W) that `encode_mask` wrote.

    >>> decode_mask([0, 2, 3, 1], (2, 3)).tolist()
    [[True, True, False], [False, False, True]]

    Raises:
        DamagedExplanation: the runs do not fill the shape.
    """
    if any(run < 0 for run in runs) or sum(runs) != shape[0] * shape[1]:
        raise DamagedExplanation(
            f"the mask's runs do not fill {shape[0]} x {shape[1]} pixels",
            hint="the file was truncated or edited: create it again",
        )
    kept = np.arange(len(runs)) % 2 == 1
    return np.repeat(kept, runs).reshape(shape)


def encode_map(values: NDArray[np.float32]) -> str:
    """Base64 of the zlib-compressed little-endian float32 values (H, W), row by row: lossless."""
    packed = zlib.compress(np.ascontiguousarray(values, "<f4").tobytes(), 9)
    return base64.b64encode(packed).decode("ascii")


def decode_map(text: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The map (H, W) that `encode_map` wrote.

    >>> decode_map(encode_map(np.ones((1, 2), np.float32)), (1, 2)).tolist()
    [[1.0, 1.0]]

    Raises:
        ValueError, zlib.error: the text is something else, or of another size.
    """
    packed = zlib.decompress(base64.b64decode(text, validate=True))
    return np.frombuffer(packed, "<f4").reshape(shape).astype(np.float32)
