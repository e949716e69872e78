"""One image explained, and its files written."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from convad_fx import images, report
from convad_fx.cli.output import numbered_stem
from convad_fx.errors import writing_to
from convad_fx.explain import Explanation, explain_disjoint
from convad_fx.models import Classifier
from convad_fx.module import MaskedModule


@dataclass(frozen=True, slots=True)
class Result:
    """An explanation of an image, the files that were written, and the time it took."""

    source: str
    explanation: Explanation
    files: tuple[Path, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "image": self.source,
            **self.explanation.to_dict(),
            "seconds": round(self.seconds, 3),
            "files": [str(file) for file in self.files],
        }


@dataclass(frozen=True, slots=True)
class PictureExplainer:
    """Explains images by one masked network; `options` are further ones of `explain_disjoint`."""

    classifier: Classifier
    masked: MaskedModule
    device: torch.device
    folder: Path
    options: Mapping[str, Any]

    def explain(self, picture: Image.Image, source: str, stem: str) -> list[Result]:
        """The explanations of an image, written to files whose names start with `stem`."""
        began = time.perf_counter()
        x = images.to_input(picture, self.classifier.preprocess)
        explanations = explain_disjoint(
            self.masked,
            x.to(self.device),
            labels=self.classifier.labels or None,
            **self.options,
        )
        seconds = (time.perf_counter() - began) / len(explanations)
        shown = images.displayable(x, self.classifier.preprocess)
        results = []
        for explanation in explanations:
            with writing_to(self.folder):
                name = numbered_stem(stem, explanation.number)
                files = report.save(explanation, shown, self.folder, name)
            results.append(Result(source, explanation, files, seconds))
        return results
