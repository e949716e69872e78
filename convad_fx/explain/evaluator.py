"""`Evaluator`: the answers to many masks on one image, and their scores, in bounded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convad_fx.engine import PrecisionCheck
from convad_fx.engine.chunk import MASKS_PER_CHUNK
from convad_fx.engine.dedup import UniqueMasks
from convad_fx.engine.precision import check_precision
from convad_fx.errors import ImageError, ModelError, PolicyError
from convad_fx.explain.options import check_count
from convad_fx.explain.scores import (
    Score,
    ScoreChoice,
    Scores,
    activation_of,
    choose_score,
    rounding_of,
)
from convad_fx.module import MaskedModule

if TYPE_CHECKING:
    from convad_fx.explain.masker import Masker

Mask: TypeAlias = NDArray[np.bool_]  # (H, W), True = kept


def check_batch_size(batch_size: int | str) -> None:
    """Raise unless the value is "auto" or a positive whole number."""
    if batch_size != "auto":
        check_count("batch_size", batch_size, minimum=1, hint="'auto' is usual")


def images_per_call(batch_size: int | str, image: Tensor) -> int:
    """Images per call of a plain network: `batch_size`, or for "auto" 16 on a CPU, 64 elsewhere.

    On a CPU, tensors of larger batches exceed the caches, and glibc maps and unmaps their memory
    at every call, which makes 64 images cost up to twice as much each.
    """
    if isinstance(batch_size, int):
        return batch_size
    return 16 if image.device.type == "cpu" else 64


class Evaluator:
    """Evaluates masks on one image, and counts them.

    >>> def brightness(x, mask):
    ...     kept = torch.where(mask, x, 0).mean((1, 2, 3))
    ...     return torch.stack([-kept, kept], 1)
    >>> evaluator = Evaluator(brightness, torch.ones(3, 8, 8), batch_size=2)
    >>> nothing, everything = np.zeros((8, 8), bool), np.ones((8, 8), bool)
    >>> evaluator.scores([everything, nothing, everything], target=1).confidence.round(2).tolist()
    [0.88, 0.5, 0.88]
    >>> evaluator.evaluations                    # identical masks of a call are evaluated once
    2

    Only a few hundred masks are held at a time, so an iterable may yield more than fit in memory.
    A masked network is run by its `evaluate`, on boxes where it can.

    Args:
        masker: `(x, mask) -> logits`.
        image: (C, H, W) or (1, C, H, W), floating point; masks are moved to its device.
        batch_size: masks per call of the network; "auto": the fastest size of a masked network,
            else `images_per_call`.
        on_evaluated: called with the number of masks after every batch.
        precision: "bfloat16" or "float16": the arithmetic of a masked network, except in `direct`
            and `full_precision` calls; None is its own.
        score: what the scores are, as in `convad_fx.explain`.

    Attributes:
        evaluations: masks evaluated so far.
        deviation: with a precision, the largest difference of logits from float32, compared on
            two masks of each size of box; else None.
        score: the score in use, from the first answers on; None before.

    Raises:
        ImageError: the image is not one floating-point image.
        PolicyError: batch_size or precision has no allowed value, or a precision is given for a
            masker that is not a masked network.
    """

    def __init__(
        self,
        masker: Masker,
        image: Tensor,
        *,
        batch_size: int | str = "auto",
        on_evaluated: Callable[[int], object] | None = None,
        precision: str | None = None,
        score: ScoreChoice = None,
    ) -> None:
        check_batch_size(batch_size)
        if precision is not None and not isinstance(masker, MaskedModule):
            raise PolicyError(
                f"precision is for masked networks, and this masker is a {type(masker).__name__}",
                hint="leave precision out, or explain `convad_fx.convert(model, example)`",
            )
        self.image = as_batch(image)
        check_precision(precision, self.image.dtype)
        self.batch_size = batch_size
        self.precision = precision
        self.evaluations = 0
        self.deviation: float | None = None
        self.score: Score | None = None
        self._score_choice = score
        self._precision_check = PrecisionCheck()
        self._masker, self._on_evaluated = masker, on_evaluated

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image, and of every mask."""
        return int(self.image.shape[2]), int(self.image.shape[3])

    def scores(
        self,
        masks: Iterable[Mask],
        target: int,
        *,
        direct: bool = False,
        full_precision: bool = False,
    ) -> Scores:
        """The scores of one class for K masks (H, W), in order.

        Args:
            masks: (H, W) each, bool, True = kept.
            target: the class whose scores are wanted.
            direct: call the masker itself, on whole images, uncompiled, in its own precision.
            full_precision: use the network's own precision instead of `precision`.

        Raises:
            ModelError: the masker's answer is not one row of finite numbers per mask.
            PolicyError: the network has no such class, or the score does not suit its answers.
        """
        answers = self.logits(masks, direct=direct, full_precision=full_precision)
        if not len(answers):
            return Scores(target, 0, np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))
        return self._chosen_score(answers)(answers, target)

    def whole(self, target: int | None = None, *, full_precision: bool = False) -> Scores:
        """The scores of the whole image: of one class, or of the predicted one.

        Raises:
            ModelError, PolicyError: as `scores`.
        """
        everything = [np.ones(self.shape, bool)]
        answers = self.logits(everything, full_precision=full_precision)
        return self._chosen_score(answers)(answers, target, optional=True)

    def _chosen_score(self, answers: Tensor) -> Score:
        """The score in use; chosen by the first answers, where the user left the choice open."""
        if self.score is None:
            kept = torch.ones(1, 1, *self.shape, dtype=torch.bool, device=self.image.device)
            dtype = getattr(torch, self.precision) if self.precision else self.image.dtype
            rounding = rounding_of(dtype)
            activation = activation_of(answers, rounding, lambda: self._direct(self.image, kept))
            self.score = choose_score(self._score_choice, answers, activation, rounding)
        return self.score

    def logits(
        self, masks: Iterable[Mask], *, direct: bool = False, full_precision: bool = False
    ) -> Tensor:
        """Logits (K, classes) of K masks (H, W), in order; float64, on the CPU."""
        by_engine = isinstance(self._masker, MaskedModule) and not direct
        precision = None if full_precision or direct else self.precision
        size = MASKS_PER_CHUNK if by_engine else images_per_call(self.batch_size, self.image)
        # Here and not left to the engine: `evaluations` counts the empty mask, which the engine
        # may answer from its cache, and chunks of distinct masks are full.
        unique = UniqueMasks(self.image)
        batches = _distinct_batches(masks, size, unique)
        logits = [self._evaluate(batch, precision, by_engine=by_engine) for batch in batches]
        if not logits:
            return torch.zeros(0, 0, dtype=torch.float64)
        return torch.cat(logits)[unique.rows]

    @property
    def _direct(self) -> Masker:
        """The masker itself, uncompiled: a compiled module's `__call__` is compiled."""
        masker = self._masker
        return masker.forward if isinstance(masker, MaskedModule) else masker

    def _evaluate(self, masks: Tensor, precision: str | None, *, by_engine: bool) -> Tensor:
        """Logits (K, classes) of masks (K, 1, H, W)."""
        mask = masks.to(self.image.device)
        with torch.inference_mode():
            if by_engine:
                assert isinstance(self._masker, MaskedModule)
                evaluation = self._masker.evaluate(
                    self.image,
                    mask,
                    batch_size=self.batch_size,
                    precision=precision,
                    precision_check=self._precision_check,
                )
                answer: object = evaluation.logits
                if evaluation.deviation is not None:
                    self.deviation = max(self.deviation or 0.0, evaluation.deviation)
            else:
                answer = self._direct(self.image, mask)
        # Scores in double precision on the CPU: the same on every device.
        logits = check_answers(answer, len(masks)).double().cpu()
        if not (finite := logits.isfinite().all(1)).all():
            kept = masks[int(finite.logical_not().nonzero()[0])].double().mean()
            raise _not_finite(float(kept), precision)
        self.evaluations += len(masks)
        if self._on_evaluated is not None:
            self._on_evaluated(len(masks))
        return logits


def _distinct_batches(masks: Iterable[Mask], size: int, unique: UniqueMasks) -> Iterator[Tensor]:
    """Batches (size, 1, H, W) of masks without duplicates; only the last one may be smaller."""
    stream, parts, held = iter(masks), list[Tensor](), 0
    while drawn := list(islice(stream, size - held)):
        parts.append(unique.new(torch.from_numpy(np.stack(drawn))[:, None]).masks)
        held += len(parts[-1])
        if held == size:
            yield torch.cat(parts)
            parts, held = [], 0
    if held:
        yield torch.cat(parts)


def check_answers(answer: object, count: int) -> Tensor:
    """The answer of a masker or model, if it has one row per mask: (count, C); (count,) is C = 1.

    Raises:
        ModelError: it is something else.
    """
    if not isinstance(answer, Tensor):
        raise ModelError(
            f"the network returned {type(answer).__name__}, not a tensor of logits",
            hint="wrap it so that it returns logits (N, classes) alone",
        )
    rows = answer[:, None] if answer.ndim == 1 else answer
    if rows.ndim != 2 or len(rows) != count or not rows.shape[1]:
        raise ModelError(
            f"the network answered a batch of {count} with shape {tuple(answer.shape)}, "
            "not (N, classes), or (N, 1) or (N,) for a single value",
            hint="wrap it so that it returns one row of logits per image",
        )
    return rows


def _not_finite(kept: float, precision: str | None) -> ModelError | PolicyError:
    if precision is None:
        return ModelError(
            f"the logits are not finite with {kept:.0%} of the image kept",
            hint="look for NaN or infinity in the image and in the weights, or for overflow "
            "in a low-precision dtype",
        )
    wider = ", or pass 'bfloat16', whose range is larger" if precision == "float16" else ""
    return PolicyError(
        f"the logits are not finite in {precision} with {kept:.0%} of the image kept",
        hint=f"leave precision out{wider}",
    )


def as_batch(image: Tensor) -> Tensor:
    """One image as (1, C, H, W), from (C, H, W) or (1, C, H, W).

    >>> as_batch(torch.zeros(3, 8, 8)).shape
    torch.Size([1, 3, 8, 8])

    Raises:
        ImageError: anything else.
    """
    hint = "preprocess it as for the network: scaled, normalised, (C, H, W) or (1, C, H, W)"
    if not isinstance(image, Tensor):
        raise ImageError(f"the image must be a tensor, not {type(image).__name__}", hint=hint)
    shape = tuple(image.shape)
    if image.ndim == 4 and len(image) != 1:
        raise ImageError(
            f"one image is explained at a time, not a batch of {len(image)}",
            hint="pass x[i] for each i",
        )
    if image.ndim not in (3, 4):
        raise ImageError(
            f"the image must have shape (C, H, W) or (1, C, H, W), not {shape}", hint=hint
        )
    if not image.is_floating_point():
        raise ImageError(f"the image must be floating point, not {image.dtype}", hint=hint)
    if not image.numel():
        raise ImageError(f"the image is empty: {shape}", hint="pass H, W >= 1")
    return image.detach().reshape(1, *image.shape[-3:])
