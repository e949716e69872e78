"""The result of `explain` as a value: `Explanation`, its `Contrast`, and their JSON form."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convad_fx.explain import display
from convad_fx.explain.encoding import (
    DamagedExplanation,
    decode_map,
    decode_mask,
    encode_map,
    encode_mask,
)
from convad_fx.explain.evaluator import Mask
from convad_fx.explain.options import Search

#: Version of the JSON form.
FORMAT = 4


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """Pixels that must be hidden for the class to change.

    A class that is not predicted on the whole image is lost once its score is below half of the
    score there; a label of its own, once it is not predicted. Then `becomes` is None.

    Args:
        mask: (H, W) bool, True = must be hidden; all False where even hiding everything does not
            change the class.
        changes: whether hiding exactly these pixels gave another class, or lost the explained one,
            evaluated at batch size 1.
        becomes: the other class; None where none takes the place of the explained one.
        becomes_name: its name, where names are known.
        confidence: of the explained class, with these pixels hidden.
        suffices: whether these pixels, kept alone, also suffice (ReX: contrastive).
        minimal: whether uncovering any one block was measured to restore the class.
    """

    mask: Mask
    changes: bool
    becomes: int | None
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
        """The other class: its name, or "class 7"; without one, the score that remains."""
        if self.becomes is None:
            return f"a score of {self.confidence:.3g}"
        return _title(self.becomes, self.becomes_name)

    @property
    def effect(self) -> str:
        """What hiding these pixels is to do, for sentences."""
        return "lower the score enough" if self.becomes is None else "change the class"

    def __str__(self) -> str:
        if not self.changes:
            return f"hiding pixels does not {self.effect}"
        also = "; they also suffice" if self.suffices else ""
        verb = "has" if self.becomes is None else "is"
        return f"without {self.size:.1%} of the image it {verb} {self.title}{also}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the mask."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "mask"}
        return {**plain, "size": self.size, "pixels": int(self.mask.sum())}


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """A set of pixels that suffices for a class, and each pixel's responsibility.

    >>> from convad_fx.explain import explain, occlusion
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).eval()
    >>> why = explain(occlusion(model), torch.rand(1, 8, 8), labels=["cat", "dog"])
    >>> why.sufficient, why.mask.shape, why.responsibility.shape
    (True, (8, 8), (8, 8))
    >>> Explanation.from_json(why.to_json()) == why
    True

    Args:
        mask: (H, W) bool, True = kept; copied.
        responsibility: (H, W) float32, >= 0, larger = more responsible; copied. All zero where no
            combination of parts passed, or where the empty mask already suffices for a prediction.
        target: the class explained.
        target_name: its name, where names are known.
        gamma: the share of the whole image's confidence that had to be kept.
        confidence_whole: the target's score on the whole image, > 0; in [0, 1] unless `score` is
            "logit" or a function.
        confidence_kept: on the kept pixels, in the batch in which they were evaluated first.
        confidence_recheck: on the kept pixels alone, at batch size 1, in the network's own
            precision.
        sufficient: whether that call gave the target with at least `gamma * confidence_whole`;
            unless `is_prediction`, whether the score alone reached that.
        evaluations: masks evaluated, all calls together.
        policy: how pixels were hidden: the masker's policy by field, empty if it has none.
        seed: of the random stream, together with the image.
        search: the options of the search.
        image_digest: SHA-256 of the image tensor's dtype, shape and values.
        versions: of this package and of torch.
        number: of earlier explanations, whose pixels are excluded (`explain_disjoint`).
        minimal: whether the set was measured to be insufficient without any one of its blocks.
        contrast: what must be hidden for the class to change, if requested.
        precision: of the search's arithmetic, "bfloat16" or "float16"; None is the network's own.
        deviation: with a precision, the largest measured difference of logits from float32.
        score: what the confidences are: a name in `SCORES`, or that of a function.
        is_prediction: whether the network predicts the target on the whole image.
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
    score: str = "softmax"
    is_prediction: bool = True

    def __post_init__(self) -> None:
        # Writable copies: torch.from_numpy warns of read-only arrays.
        for name, kind in (("mask", np.bool_), ("responsibility", np.float32)):
            object.__setattr__(self, name, np.array(getattr(self, name), dtype=kind))

    @property
    def size(self) -> float:
        """Share of the image's pixels that is kept, in [0, 1]."""
        return float(self.mask.mean())

    @property
    def title(self) -> str:
        """The target: its name, or "class 7"."""
        return _title(self.target, self.target_name)

    @property
    def remark(self) -> str:
        """For tables: that the target is not the network's answer; empty where it is."""
        return "" if self.is_prediction else " (not predicted)"

    @property
    def measure(self) -> str:
        """What the score is called: "confidence" for a probability, else "score"."""
        return "confidence" if self.score in ("softmax", "sigmoid", "probability") else "score"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Explanation):
            return NotImplemented
        return self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __str__(self) -> str:
        verdict = "sufficient" if self.sufficient else "NOT sufficient when rechecked"
        kept = f"{self.size:.1%} of the image"
        if not self.mask.any():
            kept = "nothing: the network gives this class with everything hidden;"
            if not self.is_prediction:
                kept = "nothing: this score is reached with everything hidden;"
        elif self.mask.all():
            kept = "the whole image: nothing smaller was found;"
        if self.minimal:
            verdict += f", minimal in blocks of {self.search.minimal}"
        contrast = f"; {self.contrast}" if self.contrast is not None else ""
        precision = f"; searched in {self.precision}" if self.precision is not None else ""
        if precision and self.deviation is not None:
            precision += f" (logits off by {self.deviation:.2g} where compared)"
        predicted = "" if self.is_prediction else ", which the network does not predict"
        score = "" if self.score == "softmax" else f" ({self.score})"
        return (
            f"{self.title}{predicted}: {kept} kept, {self.measure} {self.confidence_recheck:.3f} "
            f"of {self.confidence_whole:.3f}{score}, {verdict}{contrast}; "
            f"{self.evaluations} evaluations{precision}"
        )

    def _repr_png_(self) -> bytes:
        """For Jupyter: responsibility and kept pixels; `report.draw` shows them on the image."""
        return display.png(self.responsibility, self.mask)

    def _repr_html_(self) -> str:
        """For Jupyter: the same with the text of `str`."""
        return display.figure(str(self), self._repr_png_())

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
        """The whole explanation as JSON text, lossless.

        Masks are stored as run lengths (`encode_mask`), the responsibility as base64 of compressed
        float32 values (`encode_map`).
        """
        content: dict[str, Any] = {
            "format": FORMAT,
            **self.to_dict(),
            "mask": encode_mask(self.mask),
            "responsibility": encode_map(self.responsibility),
        }
        if self.contrast is not None:
            content["contrast"]["mask"] = encode_mask(self.contrast.mask)
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
            content["responsibility"] = decode_map(content["responsibility"], (height, width))
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


def _title(target: int, name: str | None) -> str:
    return name if name is not None else f"class {target}"
