"""`explain`: why does the network say so?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from convad_fx.errors import PolicyError
from convad_fx.explain.evaluate import Evaluator, as_batch
from convad_fx.explain.explanation import Explanation
from convad_fx.explain.masker import Masker, policy_of
from convad_fx.explain.options import check_count, check_share
from convad_fx.explain.responsibility import Search, responsibility
from convad_fx.explain.sufficient import sufficient

_DEFAULT = Search()


def explain(
    masker: Masker,
    image: Tensor,
    target: int | None = None,
    gamma: float = 0.9,
    *,
    progress: bool = False,
    seed: int = 0,
    search: Search = _DEFAULT,
    batch_size: int = 64,
    labels: Sequence[str] | Mapping[int, str] | None = None,
) -> Explanation:
    """Find a small set of pixels that suffices for the network's answer.

    >>> def corner(x, mask):                                # sees the top left 8 x 8 pixels only
    ...     seen = torch.where(mask, x, 0)[:, 0, :8, :8].mean((1, 2))
    ...     return torch.stack([0 * seen, 8 * seen - 4], 1)
    >>> why = explain(corner, torch.ones(1, 32, 32), labels=["other", "corner"])
    >>> why.target_name, why.sufficient, why.size < 0.15
    ('corner', True, True)
    >>> bool(why.mask[8:, 8:].any())
    False

    Kept alone, the pixels of `Explanation.mask` give the class `target` with at least `gamma`
    times its confidence (softmax) on the whole image. They are found as in the paper's experiments
    (arXiv 2510.01038): ReX's causal responsibility search ranks the pixels (see `responsibility`),
    the most responsible are kept until they suffice (see `sufficient`), and the set is then asked
    about once more, alone, at batch size 1. It is small, not the smallest, and there are others.

    If nothing needs to be kept (the empty mask already suffices), that is the answer, and no
    search is made: its responsibilities would say nothing. If no smaller set is found, the answer
    is the whole image.

    The random stream depends on `seed` and the image's values alone. Results do not depend on
    `batch_size`, but for rounding: kernels differ by batch size, and a mask that is sufficient by
    the last bit in one may not be in another.

    Args:
        masker: `(x, mask) -> logits`, e.g. a `MaskedModule`, or `occlusion(model)`.
        image: as the network reads it: float, (C, H, W) or (1, C, H, W), on the network's device.
        target: the class to explain; the network's answer if None. It must be that answer: what the
            whole image does not give, no part is sufficient for in this sense.
        gamma: the share of the confidence to be kept, in (0, 1].
        progress: show a bar, on stderr.
        seed: a non-negative integer.
        search: how much to ask.
        batch_size: masks that go through the network at once.
        labels: class names, one for every class, or a mapping from class numbers.

    Raises:
        ImageError: the image is not one floating-point image.
        ModelError: the masker's answers are not finite logits (N, classes).
        PolicyError: target, gamma, seed, batch_size or labels are out of range.
    """
    check_share(
        "gamma", gamma, zero=False, hint="the share of the confidence to keep; 0.9 is usual"
    )
    check_count("seed", seed, least=0, hint="pass 0")
    batch = as_batch(image)
    digest = image_digest(batch)
    with tqdm(total=None, unit="mask", desc="explain", disable=not progress, leave=False) as bar:
        evaluator = Evaluator(masker, batch, batch_size=batch_size, bar=bar)
        height, width = evaluator.shape
        logits = evaluator.logits([np.ones((height, width), bool)])
        target = _target(logits, target, labels)
        name = _name(target, labels, logits.shape[1])
        confidence_whole = float(torch.softmax(logits, 1)[0, target])
        at_least = gamma * confidence_whole
        ranking = np.zeros((height, width), np.float32)
        nothing = evaluator.scores([np.zeros((height, width), bool)], target)
        if not nothing.passing(target, at_least)[0]:
            entropy = [seed, int(digest, 16)]
            ranking = responsibility(evaluator, target, confidence_whole, search, entropy)
        found = sufficient(evaluator, target, at_least, ranking)
    return Explanation(
        mask=found.mask,
        responsibility=ranking,
        target=target,
        target_name=name,
        gamma=float(gamma),
        confidence_whole=confidence_whole,
        confidence_kept=found.confidence,
        confidence_recheck=found.recheck,
        sufficient=found.passed,
        evaluations=evaluator.evaluations,
        policy=policy_of(masker),
        seed=seed,
        search=search,
        image_digest=digest,
        versions=versions(),
    )


def image_digest(image: Tensor) -> str:
    """SHA-256 of an image's dtype, shape and values, whatever its device and memory layout.

    >>> x = torch.arange(12.0).reshape(1, 3, 2, 2)
    >>> image_digest(x) == image_digest(x.to(memory_format=torch.channels_last))
    True
    """
    plain = image.detach().cpu().contiguous()
    described = f"{plain.dtype} {tuple(plain.shape)} ".encode()
    values = plain.flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(described + values).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what an explanation depends on."""
    try:
        own = metadata.version("convad_fx")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        own = "unknown"
    return {"convad_fx": own, "torch": str(torch.__version__)}


def _target(
    logits: Tensor, target: int | None, labels: Sequence[str] | Mapping[int, str] | None
) -> int:
    classes = logits.shape[1]
    top = int(logits[0].argmax())
    if target is None:
        return top
    if target not in range(classes):
        raise PolicyError(
            f"target {target!r} is no class of this network",
            hint=f"pass a number from 0 to {classes - 1}, or None for the network's answer",
        )
    if target != top:
        share = torch.softmax(logits, 1)[0]
        said = _name(top, labels, classes) or f"class {top}"
        asked = _name(target, labels, classes) or f"class {target}"
        raise PolicyError(
            f"the network does not answer {asked} ({share[target]:.3g}) to the whole image but "
            f"{said} ({share[top]:.3g}), so there is no answer {asked} to explain",
            hint=f"pass target={top} or None",
        )
    return int(target)


def _name(
    target: int, labels: Sequence[str] | Mapping[int, str] | None, classes: int
) -> str | None:
    if labels is None:
        return None
    if isinstance(labels, Mapping):
        return labels.get(target)
    if isinstance(labels, str) or len(labels) != classes:
        raise PolicyError(
            f"{len(labels)} labels do not name {classes} classes",
            hint="pass one name per class, in order, or a mapping {class: name}",
        )
    return str(labels[target])
