"""`tune`: every policy on the same masks and pictures, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from convad_fx.compiler.policy import Policy
from convad_fx.convert import convert
from convad_fx.errors import ImageError, MaskError, ModelError, PolicyError
from convad_fx.explain import Search, explain
from convad_fx.explain.evaluator import Mask, as_batch
from convad_fx.explain.options import check_count, check_share
from convad_fx.metrics import (
    Agreement,
    Best,
    Interval,
    Normalisation,
    agreement,
    backgrounds,
    best_of,
    localisation,
    paired,
    random_masks,
    robustness,
)
from convad_fx.metrics.masks import as_array
from convad_fx.module import MaskedModule
from convad_fx.tuning.choice import CRITERIA, Explained, Measured, Trial, Tuning

#: The policies that are tried unless others are given: few, for the best of many leads by luck.
FEW: tuple[Policy, ...] = (
    Policy(),
    Policy(tau=0.3),
    Policy(tau=0.5),
    Policy(tau=0.7),
    Policy(input="strict"),
    Policy(tau=0.5, input="strict"),
    Policy(tau=0.5, input="raw"),
    Policy(attribution="receptive"),
    Policy(tau=0.5, attribution="receptive"),
    Policy.paper(),
    Policy(pool="renormalize"),
)

#: tau by attribution, input and pool: all of them.
FULL: tuple[Policy, ...] = tuple(
    Policy(tau, attribution, read, pool)
    for attribution in ("positional", "receptive")
    for read in ("gate", "raw", "strict")
    for pool in ("dilute", "renormalize")
    for tau in (0.0, 0.1, 0.3, 0.5, 0.7)
)

_QUICK = Search(partitions=2)


def tune(
    model: nn.Module,
    images: Sequence[Tensor],
    *,
    masks: Sequence[Mask | Tensor | None] | None = None,
    policies: Sequence[Policy] | None = None,
    baseline: Policy = Policy(),  # noqa: B008 (frozen)
    aim: str = "robust",
    gamma: float = 0.9,
    threshold: float = 0.8,
    tried: int = 64,
    n: int = 10,
    search: Search | None = _QUICK,
    level: float = 0.95,
    seed: int = 0,
    normalisation: Normalisation = Normalisation(),  # noqa: B008 (frozen)
    names: Sequence[str] | None = None,
    batch_size: int | str = "auto",
    progress: bool = False,
) -> Tuning:
    """Choose tau and the rest of the policy for a network, from a handful of its images.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> images = torch.rand(3, 3, 16, 16).unbind()
    >>> found = tune(model.eval(), images, policies=[Policy(tau=0.5)], tried=8, n=4, search=None)
    >>> found.decided, found.policy == Policy(), found.verdict[:22]
    (False, True, 'Nothing can be said fr')

    Every policy is asked about the same random masks of each image (`random_masks`), and the
    original model about the kept pixels planted on other backgrounds: solid colours, and the other
    images. With `aim="robust"` a policy scores, for each image, the AUC with which the masked
    network's confidence tells masks that are robust there from masks that are not (see
    `convad_fx.metrics.agreement`): under the best policy, "sufficient" is most nearly "robust". No
    search takes part in that, and calling less sufficient is no way to score more. With
    `aim="object"` it scores the overlap (IoU) of the explanation with the object's true mask, and
    every policy explains every image, which takes much longer.

    The baseline is kept unless another policy's lead is more than luck explains, with the choice
    among all of them allowed for (`convad_fx.metrics.best_of`). That takes five images at least,
    and usually ten or more.

    The results depend on the images, not on their order: masks are drawn for each from its values
    and the seed.

    Args:
        model: images (N, C, H, W) -> logits, in evaluation mode, as `convert` takes it.
        images: (C, H, W) or (1, C, H, W) each, all of one shape, no two alike, on the model's
            device. The class is in each case what the model says.
        masks: the object's true mask (H, W) for each image, bool, True = object; None: not known.
        policies: the ones to try; None: `convad_fx.tuning.FEW`.
        baseline: what is kept in case of doubt.
        aim: "robust" or "object".
        gamma: a part is sufficient if it keeps this share of the confidence, in (0, 1].
        threshold: a mask is robust if the class survives on this share of the backgrounds.
        tried: random masks per image.
        n: backgrounds of each kind: solid colours, and as many of the other images as there are.
        search: how explanations are found, by the baseline and the leader (for "object": by every
            policy), so that the price of a choice, their size, can be seen; None: not at all.
        level: how sure to be, in [0.5, 1).
        seed: a non-negative integer.
        normalisation: what the preprocessing subtracts and divides by; colours are drawn before it.
        names: of the images, for people.
        batch_size: masks or images that go through the network at once; "auto": as is fastest.
        progress: show a bar, on stderr.

    Raises:
        ImageError: no images, two alike, or of different shapes.
        MaskError: a true mask that does not fit its image, or is empty.
        PolicyError: an option out of its range.
        ConvadError: as `convert`.
    """
    _check(aim, tried, n, seed, search, gamma, threshold, level)
    pictures = _pictures(images, masks, names, aim)
    order = dict.fromkeys((baseline, *(FEW if policies is None else policies)))
    if isinstance(model, MaskedModule):
        raise ModelError("the model is masked already", hint="pass the network it was made of")
    maskers = {policy: convert(model, pictures[0].x, policy) for policy in order}
    judge = _Judge(model, pictures, gamma, threshold, tried, n, seed, normalisation, batch_size)
    by_search = len(order) if aim == "object" else 0 if search is None else 2
    with tqdm(
        total=len(pictures) * (len(order) + by_search),
        unit="image",
        desc="tune",
        disable=not progress,
        leave=False,
    ) as bar:
        rows: list[list[Measured]] = [[] for _ in order]
        for number in range(len(pictures)):
            for row, measured in zip(rows, judge.on_masks(number, maskers.values()), strict=True):
                row.append(measured)
                bar.update()

        def explained(k: int) -> None:
            masker = list(maskers.values())[k]
            assert search is not None
            for number in range(len(pictures)):
                found = judge.explained(number, masker, search)
                rows[k][number] = replace(rows[k][number], explained=found)
                bar.update()

        if aim == "object":
            for k in range(len(rows)):
                explained(k)
        best, difference = _chosen(rows, pictures, aim, level, seed)
        leader = 0 if best is None else best.leader
        if aim == "robust" and search is not None:
            for k in dict.fromkeys((0, leader)):
                explained(k)
    trials = tuple(
        Trial(
            policy,
            tuple(row),
            _score(row, aim),
            best.wins[k] if best is not None else 0.0,
        )
        for k, (policy, row) in enumerate(zip(order, rows, strict=True))
    )
    return Tuning(aim, trials, leader, best, difference, float(gamma), seed)


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    name: str
    x: Tensor
    truth: Mask | None
    digest: bytes


@dataclass(frozen=True, slots=True, eq=False)
class _Judge:
    """Measures policies on pictures, all in the same way."""

    model: nn.Module
    pictures: Sequence[_Picture]
    gamma: float
    threshold: float
    tried: int
    n: int
    seed: int
    normalisation: Normalisation
    batch_size: int | str

    def planted(self, number: int) -> list[Tensor]:
        """Backgrounds: the same whatever the order of the pictures."""
        x = self.pictures[number].x
        others = [one for k, one in enumerate(self.pictures) if k != number]
        others.sort(key=lambda one: one.digest)
        known = backgrounds(x, n=self.n, seed=self.seed, normalisation=self.normalisation)
        found = list(known)
        if count := min(self.n, len(others)):
            content = [one.x for one in others]
            found += backgrounds(x, "images", count, others=content, seed=self.seed)
        return found

    def on_masks(self, number: int, maskers: Iterable[MaskedModule]) -> Iterator[Measured]:
        """What each masked network says of the same random masks."""
        picture = self.pictures[number]
        shape = (int(picture.x.shape[2]), int(picture.x.shape[3]))
        stream = int.from_bytes(picture.digest[:6], "big") + self.seed
        masks = random_masks(shape, self.tried, stream)
        planted, target = self.planted(number), self.target(number)
        first: Agreement | None = None
        for masker in maskers:
            found = agreement(
                masker,
                self.model,
                picture.x,
                target,
                masks=masks,
                rho=None if first is None else first.rho,
                gamma=self.gamma,
                threshold=self.threshold,
                on=planted,
                batch_size=self.batch_size,
            )
            first = first or found
            yield Measured(
                picture.name,
                _or_none(found.auc),
                found.called_sufficient,
                _or_none(found.robust_given_sufficient),
            )

    def explained(self, number: int, masker: MaskedModule, search: Search) -> Explained:
        """The explanation, where it survives, and where it lies."""
        picture = self.pictures[number]
        why = explain(
            masker,
            picture.x,
            self.target(number),
            self.gamma,
            seed=self.seed,
            search=search,
            batch_size=self.batch_size,
        )
        rho = robustness(
            self.model,
            picture.x,
            why.mask,
            why.target,
            self.planted(number),
            batch_size=self.batch_size,
        ).rho
        iou = energy = None
        if picture.truth is not None:
            where = localisation(why.mask, picture.truth, why.responsibility)
            iou = where.iou
            energy = None if where.energy is None else _or_none(where.energy)
        return Explained(why.size, rho, why.sufficient, iou, energy)

    def target(self, number: int) -> int:
        with torch.inference_mode():
            return int(self.model(self.pictures[number].x)[0].argmax())


def _chosen(
    rows: Sequence[Sequence[Measured]],
    pictures: Sequence[_Picture],
    aim: str,
    level: float,
    seed: int,
) -> tuple[Best | None, Interval | None]:
    counting = [k for k in range(len(pictures)) if _value(rows[0][k], aim) is not None]
    # By content: the resamples, too, are the same whatever the order.
    counting.sort(key=lambda k: pictures[k].digest)
    if not counting:
        return None, None
    values = np.array([[_value(row[k], aim) for k in counting] for row in rows], np.float64)
    best = best_of(values, level=level, seed=seed)
    lead = paired(values[best.leader], values[0], level=level, seed=seed)
    return best, lead.difference


def _value(measured: Measured, aim: str) -> float | None:
    if aim == "robust":
        return measured.auc
    return None if measured.explained is None else measured.explained.iou


def _score(row: Sequence[Measured], aim: str) -> float | None:
    values = [value for value in (_value(one, aim) for one in row) if value is not None]
    return math.fsum(values) / len(values) if values else None


def _pictures(
    images: Sequence[Tensor],
    masks: Sequence[Mask | Tensor | None] | None,
    names: Sequence[str] | None,
    aim: str,
) -> list[_Picture]:
    count = len(images)
    if not count:
        raise ImageError("there are no images", hint="pass five or more, better ten")
    for what, given in (("masks", masks), ("names", names)):
        if given is not None and len(given) != count:
            raise PolicyError(
                f"{len(given)} {what} do not fit {count} images", hint="one for each, in order"
            )
    if aim == "object" and (masks is None or all(mask is None for mask in masks)):
        raise PolicyError(
            "aim 'object' needs true masks of the objects", hint="pass masks, or aim 'robust'"
        )
    titles = [f"image {k}" for k in range(1, count + 1)] if names is None else list(names)
    found: list[_Picture] = []
    seen: dict[bytes, str] = {}
    for k, (image, name) in enumerate(zip(images, titles, strict=True)):
        x = as_batch(image)
        if found and x.shape != found[0].x.shape:
            raise ImageError(
                f"{name} has shape {tuple(x.shape[1:])}, {found[0].name} "
                f"{tuple(found[0].x.shape[1:])}",
                hint="preprocess all images alike",
            )
        content = x.cpu().contiguous().to(torch.float64).numpy().tobytes()
        digest = blake2b(content, digest_size=16).digest()
        if digest in seen:
            raise ImageError(
                f"{name} and {seen[digest]} are the same image",
                hint="pass each once: a copy says nothing new, and would count as evidence",
            )
        seen[digest] = name
        true = None if masks is None else masks[k]
        truth = None if true is None else _truth(true, x, name)
        found.append(_Picture(name, x, truth, digest))
    return found


def _truth(mask: Mask | Tensor, x: Tensor, name: str) -> Mask:
    try:
        truth = as_array(mask, (int(x.shape[2]), int(x.shape[3])))
    except MaskError as error:
        raise MaskError(f"the true mask of {name}: {error.what}", hint=error.hint) from error
    if not truth.any():
        raise MaskError(f"the true mask of {name} is empty", hint="pass None for it")
    return truth


def _check(
    aim: str,
    tried: int,
    n: int,
    seed: int,
    search: Search | None,
    gamma: float,
    threshold: float,
    level: float,
) -> None:
    """Before the work, not after it."""
    if aim not in CRITERIA:
        raise PolicyError(
            f"aim must be one of {', '.join(CRITERIA)}, not {aim!r}", hint="pass 'robust'"
        )
    if aim == "object" and search is None:
        raise PolicyError("aim 'object' needs explanations", hint="pass a search")
    check_count("tried", tried, minimum=2, hint="64 are usual")
    check_count("n", n, minimum=1, hint="10 are usual")
    check_count("seed", seed, minimum=0, hint="pass 0")
    check_share("gamma", gamma, allow_zero=False, hint="0.9 is usual")
    check_share("threshold", threshold, allow_zero=False, hint="0.8 is usual")
    if not 0.5 <= level < 1:
        raise PolicyError(f"level must lie in [0.5, 1), not {level!r}", hint="0.95 is usual")


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
