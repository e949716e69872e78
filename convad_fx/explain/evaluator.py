"""Many masks on one image, in bounded batches: all questions to the network go through here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convad_fx.engine import PrecisionCheck
from convad_fx.engine.chunk import MASKS_PER_CHUNK
from convad_fx.engine.precision import check_precision
from convad_fx.errors import ImageError, ModelError, PolicyError
from convad_fx.explain.options import check_class, check_count
from convad_fx.module import MaskedModule

if TYPE_CHECKING:
    from convad_fx.explain.masker import Masker

Mask: TypeAlias = NDArray[np.bool_]  # (H, W), True = kept


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What the network says of K masks.

    Args:
        top: the class it gives, (K,) integers.
        confidence: softmax of one target class, (K,), in [0, 1].
    """

    top: NDArray[np.int64]
    confidence: NDArray[np.float64]

    def passing(self, target: int, at_least: float) -> NDArray[np.bool_]:
        """Whether `target` is the class given, with a confidence of `at_least`; (K,)."""
        passing: NDArray[np.bool_] = (self.top == target) & (self.confidence >= at_least)
        return passing


def check_batch_size(batch_size: int | str) -> None:
    """Refuses what is neither "auto" nor a positive whole number."""
    if batch_size != "auto":
        check_count("batch_size", batch_size, least=1, hint="'auto' is usual")


def at_once(batch_size: int | str, image: Tensor) -> int:
    """How many images go through a plain network at once, where nothing was asked for.

    16 on a CPU: tensors of larger batches leave its caches, and glibc maps and unmaps their memory
    at every call, which makes 64 images cost up to twice as much each. 64 elsewhere.
    """
    if isinstance(batch_size, int):
        return batch_size
    return 16 if image.device.type == "cpu" else 64


class Evaluator:
    """Asks a masker about one image, and counts.

    >>> def brightness(x, mask):
    ...     kept = torch.where(mask, x, 0).mean((1, 2, 3))
    ...     return torch.stack([-kept, kept], 1)
    >>> evaluator = Evaluator(brightness, torch.ones(3, 8, 8), batch_size=2)
    >>> nothing, everything = np.zeros((8, 8), bool), np.ones((8, 8), bool)
    >>> evaluator.scores([everything, nothing, everything], target=1).confidence.round(2).tolist()
    [0.88, 0.5, 0.88]
    >>> evaluator.evaluations                                  # identical masks are asked once
    2

    Masks are drawn from their iterable a few hundred at a time, so that there may be more of them
    than fit in memory; what is kept of each is its logits. A masked network answers by its
    `evaluate`, on boxes where it can.

    Args:
        masker: `(x, mask) -> logits`.
        image: (C, H, W) or (1, C, H, W), floating point; masks are moved to its device.
        batch_size: masks that go through the network at once, or "auto": what the masked network
            finds fastest; for other maskers see `at_once`.
        bar: a tqdm-like object, told of every evaluation by `bar.update(n)`.
        precision: "bfloat16" or "float16": the masked network's arithmetic, but where it is asked
            plainly or exactly; None is its own.

    Attributes:
        evaluations: masks asked about so far.
        deviation: with a precision, how far logits were from float32's, where compared: on
            two masks of each size of box; else None.

    Raises:
        ImageError: the image is not one floating-point image.
        PolicyError: batch_size is neither "auto" nor a positive whole number; no such precision,
            or one for a masker that is no masked network.
    """

    def __init__(
        self,
        masker: Masker,
        image: Tensor,
        *,
        batch_size: int | str = "auto",
        bar: Any = None,
        precision: str | None = None,
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
        self._precision_check = PrecisionCheck()
        self._masker, self._bar = masker, bar

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image, and of every mask."""
        return int(self.image.shape[2]), int(self.image.shape[3])

    def scores(
        self, masks: Iterable[Mask], target: int, *, plainly: bool = False, exact: bool = False
    ) -> Scores:
        """What the network says of each mask (H, W), in order.

        Args:
            exact: in the network's own precision, whatever the search's.
            plainly: by plain calls on whole images, nothing compiled, in the network's own
                precision, as anybody would check it.

        Raises:
            ModelError: the masker's answer is not one row of two or more finite logits per mask.
            PolicyError: the network has no such class.
        """
        logits = self.logits(masks, plainly=plainly, exact=exact)
        if not len(logits):
            return Scores(np.zeros(0, np.int64), np.zeros(0, np.float64))
        check_class(target, logits.shape[1])
        confidence = torch.softmax(logits, 1)[:, target]
        return Scores(logits.argmax(1).numpy(), confidence.numpy())

    def logits(
        self, masks: Iterable[Mask], *, plainly: bool = False, exact: bool = False
    ) -> Tensor:
        """Logits (K, classes) of K masks (H, W), in order; float64, on the CPU."""
        seen: dict[bytes, int] = {}
        rows: list[int] = []
        found: list[Tensor] = []
        fresh = self._fresh(masks, seen, rows)
        by_engine = isinstance(self._masker, MaskedModule) and not plainly
        some = MASKS_PER_CHUNK if by_engine else at_once(self.batch_size, self.image)
        while batch := list(islice(fresh, some)):
            precision = None if exact or plainly else self.precision
            found.append(self._ask(np.stack(batch), precision, by_engine=by_engine))
        if not found:
            return torch.zeros(0, 0, dtype=torch.float64)
        return torch.cat(found)[rows]

    def _fresh(
        self, masks: Iterable[Mask], seen: dict[bytes, int], rows: list[int]
    ) -> Iterator[Mask]:
        """The masks not met before; `rows` gets, for every mask, the number of its like."""
        for mask in masks:
            key = blake2b(np.packbits(mask).tobytes(), digest_size=16).digest()
            new = key not in seen
            rows.append(seen.setdefault(key, len(seen)))
            if new:
                yield mask

    def _ask(self, masks: NDArray[np.bool_], precision: str | None, *, by_engine: bool) -> Tensor:
        mask = torch.from_numpy(masks)[:, None].to(self.image.device)
        with torch.inference_mode():
            if by_engine:
                assert isinstance(self._masker, MaskedModule)
                found = self._masker.evaluate(
                    self.image,
                    mask,
                    batch_size=self.batch_size,
                    precision=precision,
                    precision_check=self._precision_check,
                )
                answer: Any = found.logits
                if found.deviation is not None:
                    self.deviation = max(self.deviation or 0.0, found.deviation)
            else:
                masker: Any = self._masker
                if isinstance(masker, MaskedModule):
                    masker = masker.forward
                answer = masker(self.image, mask)
        if not isinstance(answer, Tensor):
            raise ModelError(
                f"the masker returned {type(answer).__name__}, not a tensor of logits",
                hint="wrap it so that it returns logits (N, classes) alone",
            )
        if answer.ndim != 2 or len(answer) != len(masks) or answer.shape[1] < 2:
            raise ModelError(
                f"the masker answered {len(masks)} masks with shape {tuple(answer.shape)}, "
                "not (N, classes) with two classes or more",
                hint="wrap it so that it returns one row of logits per mask "
                "(for one yes-or-no logit z: the two columns 0 and z)",
            )
        # Softmax in double precision on the CPU: the same on every device.
        logits: Tensor = answer.double().cpu()
        finite = logits.isfinite().all(1)
        if not finite.all():
            kept = masks[int(finite.logical_not().nonzero()[0])].mean()
            if precision is not None:
                raise PolicyError(
                    f"the logits are not finite in {precision} with {kept:.0%} of the image kept",
                    hint="leave precision out"
                    + (", or pass 'bfloat16', which reaches further" * (precision == "float16")),
                )
            raise ModelError(
                f"the logits are not finite with {kept:.0%} of the image kept",
                hint="look for NaN or infinity in the image and in the weights, or for overflow "
                "in a low-precision dtype",
            )
        self.evaluations += len(masks)
        if self._bar is not None:
            self._bar.update(len(masks))
        return logits


def as_batch(image: Tensor) -> Tensor:
    """One image as (1, C, H, W), from (C, H, W) or (1, C, H, W).

    >>> as_batch(torch.zeros(3, 8, 8)).shape
    torch.Size([1, 3, 8, 8])

    Raises:
        ImageError: anything else, saying what came.
    """
    if not isinstance(image, Tensor):
        raise ImageError(
            f"the image must be a tensor, not {type(image).__name__}",
            hint="preprocess it as for the network: float, (C, H, W) or (1, C, H, W)",
        )
    if image.ndim == 4 and len(image) != 1:
        raise ImageError(
            f"one image is explained at a time, not a batch of {len(image)}",
            hint="pass x[i] for each i",
        )
    if image.ndim not in (3, 4):
        raise ImageError(
            f"the image must have shape (C, H, W) or (1, C, H, W), not {tuple(image.shape)}",
            hint="preprocess it as for the network",
        )
    if not image.is_floating_point():
        raise ImageError(
            f"the image must be floating point, not {image.dtype}",
            hint="preprocess it as for the network: scale and normalise",
        )
    if not image.numel():
        raise ImageError(f"the image is empty: {tuple(image.shape)}", hint="pass H, W >= 1")
    return image.detach().reshape(1, *image.shape[-3:])
