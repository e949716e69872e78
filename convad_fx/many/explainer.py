"""Explain one picture and make its row: the same function in every process."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from convad_fx import images, models
from convad_fx.errors import ImageError, writing_to
from convad_fx.explain import Evaluator, Explanation, explain
from convad_fx.many.options import METRICS, ExplainOptions
from convad_fx.many.provenance import Provenance, weights_digest
from convad_fx.many.rows import row_of
from convad_fx.many.sources import Item
from convad_fx.versions import versions, versions_of_pixels


class Explainer:
    """A converted classifier that makes one row per picture.

    >>> from convad_fx.demo import scenes
    >>> from convad_fx.explain import Search
    >>> from convad_fx.many import ClassifierSpec
    >>> import io
    >>> from PIL import Image
    >>> png = io.BytesIO()
    >>> Image.fromarray(scenes.held_out(1)[0].image).save(png, "png")
    >>> item = Item("ladybird.png", "ladybird.png", png.getvalue)
    >>> options = ExplainOptions(search=Search(partitions=1))
    >>> explainer = Explainer(ClassifierSpec("demo").load(), options)
    >>> explainer(item)["target_name"]
    'ladybird'

    Args:
        classifier: as `models.resolve` returns it.
        options: how each picture is explained.
        device: where the network runs.
        overlays: the folder for a drawing of each picture; None draws none.

    Attributes:
        masked: the converted network.
        provenance: everything besides the picture that a row depends on.
        seconds_draw: time spent on the drawing of the last picture.

    Raises:
        ConvadError: the network cannot be converted, or was compiled with another policy.
    """

    def __init__(
        self,
        classifier: models.Classifier,
        options: ExplainOptions = ExplainOptions(),  # noqa: B008 (frozen)
        device: torch.device | str = "cpu",
        overlays: Path | None = None,
    ) -> None:
        self.classifier, self.options, self.overlays = classifier, options, overlays
        self.device = torch.device(device)
        self.masked = models.masked_network(classifier, self.device, options.policy)
        if options.target is not None:
            example = classifier.example(self.device)
            Evaluator(self.masked, example, score=options.score).whole(options.target)
        self.weights_digest = weights_digest(self.masked)
        self.provenance = self._provenance()
        self.seconds_draw = 0.0

    def _provenance(self) -> Provenance:
        try:
            preprocessing: Mapping[str, Any] = images.recorded(self.classifier.preprocess)
        except ImageError:  # a custom transform: its text is the best description there is
            preprocessing = {"steps": str(self.classifier.preprocess.transform)}
        labels = json.dumps(list(self.classifier.labels))
        settings = self.options.arguments
        del settings["batch_size"]  # changes rounding at most
        return Provenance(
            {
                **settings,
                "network": hashlib.sha256(self.masked.code.encode()).hexdigest(),
                "weights": self.weights_digest,
                "preprocessing": preprocessing,
                # a digest, since every row holds this text
                "labels": hashlib.sha256(labels.encode()).hexdigest()[:16],
                "policy": self.masked.policy.to_dict(),
                "search": asdict(self.options.search),
                "metrics": sorted(self.options.metrics),
                "versions": versions() | versions_of_pixels(),
            }
        )

    def __call__(self, item: Item) -> dict[str, Any]:
        """The picture's row, as JSON values.

        Raises:
            ImageError: the picture cannot be read.
            PolicyError: the score of `target` is not positive on this picture.
            Unavailable: the overlay cannot be written.
        """
        start = time.perf_counter()
        content = item.read()
        x = images.to_input(images.open_image(item.where, content), self.classifier.preprocess)
        loaded = time.perf_counter()
        why, measured = self._explain(x.to(self.device))
        explained = time.perf_counter()
        overlay = self._draw(item.key, why, x) if self.overlays is not None else None
        self.seconds_draw = time.perf_counter() - explained
        return row_of(
            why,
            measured,
            {
                "key": item.key,
                "sha256": hashlib.sha256(content).hexdigest(),
                "bytes": len(content),
                "seconds_load": loaded - start,
                "seconds_search": explained - loaded,
                "overlay": overlay,
                "device": self.device.type,
                "model": self.classifier.name,
                "weights_digest": self.weights_digest,
                "policy": json.dumps(dict(why.policy), sort_keys=True),
                "versions": json.dumps(dict(why.versions), sort_keys=True),
                "run": self.provenance.digest,
                "provenance": self.provenance.text,
            },
        )

    def _explain(self, x: Tensor) -> tuple[Explanation, dict[str, float]]:
        options = self.options
        why = explain(self.masked, x, labels=self.classifier.labels or None, **options.arguments)
        return why, {name: METRICS[name](self.masked, x, why, options) for name in options.metrics}

    def _draw(self, key: str, why: Explanation, x: Tensor) -> str:
        from convad_fx import report  # imports matplotlib

        assert self.overlays is not None
        # The digest distinguishes a/1.png from b/1.png; the name is for people.
        name = PurePosixPath(key).stem[:80].replace("\\", "_").replace("\0", "_")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        shown = images.displayable(x, self.classifier.preprocess)
        with writing_to(self.overlays):
            _, picture = report.save(why, shown, self.overlays, f"{name}-{digest}")
        return f"{self.overlays.name}/{picture.name}"
