"""The answer, as a value: what was kept, what the network said of it, and how it was found."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convad_fx.errors import ConvadError
from convad_fx.explain import display
from convad_fx.explain.evaluator import Mask
from convad_fx.explain.options import Search

FORMAT = 3


class DamagedExplanation(ConvadError, ValueError):
    """A text that is not an explanation, or not one that this version can read."""


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """What must be hidden for the class to change.

    Args:
        mask: (H, W) bool, True = must be hidden; all False where even hiding everything does not
            change the class.
        changes: whether hiding these pixels, and no others, gave another class when asked alone, at
            batch size 1.
        becomes: the class given then.
        becomes_name: its name, where names are known.
        confidence: of the class that was explained, then.
        suffices: whether these pixels, kept alone, also suffice for the class: then they are
            necessary and sufficient, which is what ReX calls contrastive.
        minimal: whether uncovering any one block of `Search.minimal` pixels' side was seen to bring
            the class back.
    """

    mask: Mask
    changes: bool
    becomes: int
    becomes_name: str | None
    confidence: float
    suffices: bool
    minimal: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", np.array(self.mask, dtype=np.bool_))

    @property
    def size(self) -> float:
        """Share of the image's pixels that must be hidden, in [0, 1]."""
        return float(self.mask.mean())

    @property
    def title(self) -> str:
        """The other class for people."""
        return self.becomes_name if self.becomes_name is not None else f"class {self.becomes}"

    def __str__(self) -> str:
        if not self.changes:
            return "hiding pixels does not change the class"
        too = "; they also suffice" if self.suffices else ""
        return f"without {self.size:.1%} of the image it is {self.title}{too}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the mask."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "mask"}
        return {**plain, "size": self.size, "pixels": int(self.mask.sum())}


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """A set of pixels that suffices for the network's answer, and how responsible each pixel is.

    >>> from convad_fx.explain import explain, occlusion
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).eval()
    >>> why = explain(occlusion(model), torch.rand(1, 8, 8), labels=["cat", "dog"])
    >>> why.sufficient, why.mask.shape, why.responsibility.shape
    (True, (8, 8), (8, 8))
    >>> Explanation.from_json(why.to_json()) == why
    True

    Args:
        mask: (H, W) bool, True = kept; a copy of its own.
        responsibility: (H, W) float32, >= 0, larger = more responsible; all zero where the search
            learnt nothing, or was not needed because nothing is; a copy of its own.
        target: the class explained.
        target_name: its name, where names are known.
        gamma: the share of the whole image's confidence that had to be kept.
        confidence_whole: softmax of the target on the whole image, in [0, 1].
        confidence_kept: on the kept pixels, in the batch in which they were found.
        confidence_recheck: on the kept pixels alone, at batch size 1, in a fresh call. It differs
            from `confidence_kept` by rounding, of the lower precision if there is one.
        sufficient: whether that last call gave the target with at least
            `gamma * confidence_whole`.
        evaluations: masks the network was asked about, all calls together.
        policy: how pixels were hidden: the masker's policy by field, empty if it has none.
        seed: of the random stream, together with the image.
        search: how much was asked.
        image_digest: SHA-256 of the image tensor's dtype, shape and values.
        versions: of this package and of torch.
        number: how many explanations of the same image were found before it, none of whose pixels
            it may use (`explain_disjoint`).
        minimal: whether leaving out any one block of `search.minimal` pixels' side was seen to make
            the set insufficient.
        contrast: what must be hidden for the class to change, where that was asked.
        precision: of the search's arithmetic, "bfloat16" or "float16"; None is the network's own.
            `confidence_whole` and `confidence_recheck` are always in the network's own.
        deviation: with a precision, how far logits were from float32's, where compared: on
            two masks of each size of box.
    """

    mask: Mask
    responsibility: NDArray[np.float32]
    target: int
    target_name: str | None
    gamma: float
    confidence_whole: float
    confidence_kept: float
    confidence_recheck: float
    sufficient: bool
    evaluations: int
    policy: Mapping[str, Any]
    seed: int
    search: Search
    image_digest: str
    versions: Mapping[str, str] = field(default_factory=dict)
    number: int = 0
    minimal: bool = False
    contrast: Contrast | None = None
    precision: str | None = None
    deviation: float | None = None

    def __post_init__(self) -> None:
        # Copies, and writable: torch.from_numpy warns of arrays that are not.
        for name, kind in (("mask", np.bool_), ("responsibility", np.float32)):
            array = np.array(getattr(self, name), dtype=kind)
            object.__setattr__(self, name, array)

    @property
    def size(self) -> float:
        """Share of the image's pixels that is kept, in [0, 1]."""
        return float(self.mask.mean())

    @property
    def title(self) -> str:
        """The target for people: its name, or "class 7"."""
        return self.target_name if self.target_name is not None else f"class {self.target}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Explanation):
            return NotImplemented
        return self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __str__(self) -> str:
        verdict = "sufficient" if self.sufficient else "NOT sufficient when asked again"
        what = f"{self.size:.1%} of the image"
        if not self.mask.any():
            what = "nothing: the network gives this class with everything hidden;"
        elif self.mask.all():
            what = "the whole image: nothing smaller was found;"
        if self.minimal:
            verdict += f", minimal in blocks of {self.search.minimal}"
        contrast = f"; {self.contrast}" if self.contrast is not None else ""
        lower = ""
        if self.precision is not None:
            off = (
                ""
                if self.deviation is None
                else f" (logits off by {self.deviation:.2g} where compared)"
            )
            lower = f"; searched in {self.precision}{off}"
        return (
            f"{self.title}: {what} kept, confidence {self.confidence_recheck:.3f} of "
            f"{self.confidence_whole:.3f}, {verdict}{contrast}; {self.evaluations} evaluations"
            f"{lower}"
        )

    def _repr_png_(self) -> bytes:
        """For Jupyter: responsibility and kept pixels; `report.draw` shows them on the picture."""
        return display.png(self)

    def _repr_html_(self) -> str:
        """For Jupyter: the same, and what `str` says."""
        return display.page(self, base64.b64encode(self._repr_png_()).decode("ascii"))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the maps, as plain numbers and strings: for a table or a log."""
        plain = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("mask", "responsibility", "contrast")
        }
        return {
            **plain,
            "size": self.size,
            "pixels": int(self.mask.sum()),
            "shape": list(self.mask.shape),
            "policy": dict(self.policy),
            "search": asdict(self.search),
            "versions": dict(self.versions),
            "contrast": None if self.contrast is None else self.contrast.to_dict(),
        }

    def to_json(self) -> str:
        """The whole explanation as JSON text.

        The mask is stored as runs, row by row, the first of hidden pixels; the responsibility
        as base64 of zlib of little-endian float32, row by row, so that it comes back bit for bit.
        """
        content = {
            "format": FORMAT,
            **self.to_dict(),
            "mask": encode_mask(self.mask),
            "responsibility": _encode_map(self.responsibility),
        }
        if self.contrast is not None:
            content["contrast"] = {
                **self.contrast.to_dict(),
                "mask": encode_mask(self.contrast.mask),
            }
        return json.dumps(content, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Explanation:
        """The explanation that `to_json` wrote.

        Raises:
            DamagedExplanation: the text is something else.
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise DamagedExplanation(
                    f"an explanation of format {content['format']!r}, this version reads {FORMAT}",
                    hint="use the version of convad_fx that wrote it",
                )
            height, width = content["shape"]
            content["mask"] = decode_mask(content["mask"], (height, width))
            content["responsibility"] = _decode_map(content["responsibility"], (height, width))
            content["search"] = Search(**content["search"])
            if (contrast := content["contrast"]) is not None:
                contrast["mask"] = decode_mask(contrast["mask"], (height, width))
                content["contrast"] = Contrast(
                    **{f.name: contrast[f.name] for f in fields(Contrast)}
                )
            return cls(**{f.name: content[f.name] for f in fields(cls)})
        except DamagedExplanation:
            raise
        except (ValueError, TypeError, KeyError, zlib.error) as error:
            raise DamagedExplanation(
                f"not an explanation: {type(error).__name__}: {error}",
                hint="pass the text of a JSON file that Explanation.to_json wrote",
            ) from error


def encode_mask(mask: Mask) -> list[int]:
    """Lengths of runs, row by row, of hidden and kept pixels in turn, hidden first.

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
            hint="the file was cut or edited: make it again",
        )
    kept = np.arange(len(runs)) % 2 == 1
    return np.repeat(kept, runs).reshape(shape)


def _encode_map(values: NDArray[np.float32]) -> str:
    packed = zlib.compress(np.ascontiguousarray(values, "<f4").tobytes(), 9)
    return base64.b64encode(packed).decode("ascii")


def _decode_map(text: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    packed = zlib.decompress(base64.b64decode(text, validate=True))
    return np.frombuffer(packed, "<f4").reshape(shape).astype(np.float32)
