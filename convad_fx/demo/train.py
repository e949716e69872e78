"""Draw pictures and train the demo's network on them: `python -m convad_fx.demo.train`.

Takes minutes on two CPU cores. The same seed, machine and version of torch give the same weights.
"""

import multiprocessing
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm import tqdm

from convad_fx.demo import scenes
from convad_fx.demo.network import SIZE, WEIGHTS, DemoNet, normalise

_OUT = Path(__file__).with_name(WEIGHTS)
_WORKERS = 2
_BATCH = 64
_PEAK_RATE = 4e-3
# A picture in which erasing would leave less than this share of the object stays whole, since
# invisible objects would only teach the network to guess.
_MIN_VISIBLE = 0.4

# images (N, 3, H, W) uint8, masks (N, 1, H, W) bool, labels (N,) int64
Pictures = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def main(
    out: Annotated[Path, typer.Option(help="Where to write the weights.")] = _OUT,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pictures.")] = 14,
    seed: Annotated[int, typer.Option(min=0, help="For the pictures and the training.")] = 0,
    pictures: Annotated[int, typer.Option(min=1, help="Number of training pictures.")] = 10_000,
    test: Annotated[int, typer.Option(min=1, help="Number of held-out pictures.")] = 2_000,
) -> None:
    """Draw, train, test on held-out pictures, and write the weights."""
    start = time.perf_counter()
    # One thread, since rounding depends on the number, and small steps gain little from a second.
    torch.set_num_threads(1)
    training = _draw(scenes.training_numbers(pictures, run=seed), "drawing")
    model = train(training, epochs=epochs, seed=seed)
    score = accuracy(model, _draw(scenes.held_out_numbers(test), "drawing held-out pictures"))
    metadata = {
        "accuracy": f"{score:.4f} on {test} held-out pictures",
        "classes": ", ".join(scenes.CLASSES),
        "epochs": str(epochs),
        "pictures": str(pictures),
        "seed": str(seed),
        "torch": version("torch"),
    }
    save_file(model.state_dict(), out, metadata)
    minutes = (time.perf_counter() - start) / 60
    typer.echo(f"held-out accuracy {score:.2%} on {test} pictures; {minutes:.1f} min; wrote {out}")


def train(pictures: Pictures, epochs: int, seed: int) -> DemoNet:
    """A network trained on `pictures`, in evaluation mode."""
    images, masks, labels = pictures
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    # channels last is a third faster on the CPU
    model = DemoNet().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_RATE, weight_decay=0.02)
    steps = epochs * -(-len(labels) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, total_steps=steps)
    with tqdm(total=steps, desc="training", unit="batch") as bar:
        for _ in range(epochs):
            order = torch.randperm(len(labels), generator=rng)
            for chosen in torch.split(order, _BATCH):
                x = augmented(normalise(images[chosen]), masks[chosen], rng)
                x = x.contiguous(memory_format=torch.channels_last)
                loss = F.cross_entropy(model(x), labels[chosen], label_smoothing=0.05)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
    return model.to(memory_format=torch.contiguous_format).eval()


@torch.no_grad()
def accuracy(model: DemoNet, pictures: Pictures) -> float:
    """The share of pictures that the network classifies correctly."""
    images, _, labels = pictures
    guesses = [model(normalise(batch)).argmax(dim=1) for batch in torch.split(images, _BATCH)]
    return float((torch.cat(guesses) == labels).float().mean())


def augmented(images: torch.Tensor, masks: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Move, zoom and mirror pictures, and erase parts of some of them to zero, the mean.

    >>> x, mask = torch.ones(8, 3, 96, 96), torch.ones(8, 1, 96, 96, dtype=torch.bool)
    >>> sorted(augmented(x, mask, torch.Generator().manual_seed(0)).unique().tolist())[0]
    0.0

    Args:
        images: normalised, (N, 3, 96, 96).
        masks: where the objects are, bool (N, 1, 96, 96).
        rng: source of the random choices.
    """
    count = len(images)
    # 0.75 crops the picture, 1.2 adds a border of zeros.
    zoom = torch.empty(count).uniform_(0.75, 1.2, generator=rng)
    mirror = torch.randint(0, 2, (count,), generator=rng) * 2 - 1
    shift = torch.empty(count, 2).uniform_(-0.15, 0.15, generator=rng)
    zero = torch.zeros(count)
    rows = [
        torch.stack([zoom * mirror, zero, shift[:, 0]], dim=1),
        torch.stack([zero, zoom, shift[:, 1]], dim=1),
    ]
    frame = torch.stack(rows, dim=1)
    grid = F.affine_grid(frame, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)
    objects = F.grid_sample(masks.float(), grid, mode="nearest", align_corners=False)

    kept = _kept(count, rng)
    whole = masks.float().sum(dim=(1, 2, 3)) / zoom**2
    visible = (objects * kept).sum(dim=(1, 2, 3)) / whole
    kept |= (visible < _MIN_VISIBLE).view(-1, 1, 1, 1)
    return torch.where(kept, moved, 0.0)


def _kept(count: int, rng: torch.Generator) -> torch.Tensor:
    """Random masks (N, 1, 96, 96), True = kept: everything, all but boxes, or boxes alone."""
    boxes = 3
    side = torch.empty(count, boxes, 2).uniform_(0.15, 0.5, generator=rng) * SIZE
    middle = torch.empty(count, boxes, 2).uniform_(0, SIZE, generator=rng)
    style = torch.randint(0, 3, (count, 1, 1), generator=rng)
    # Boxes that are kept alone are larger, so that they show enough of the object.
    side = torch.where(style == 2, 1.5 * side, side)
    cell = torch.arange(SIZE) + 0.5
    inside = (cell - middle[..., None]).abs() * 2 <= side[..., None]
    covered = (inside[:, :, 0, :, None] & inside[:, :, 1, None, :]).any(dim=1)
    kept = torch.where(style == 2, covered, ~covered) | (style == 0)
    return kept[:, None]


def _draw(numbers: Sequence[tuple[int, int]], description: str) -> Pictures:
    """Draw the pictures of `numbers` (label and seed) in several processes, in order."""
    # Forking after torch has started threads may hang.
    with multiprocessing.get_context("spawn").Pool(_WORKERS) as pool:
        drawing = pool.imap(_scene, numbers, chunksize=50)
        drawn = list(tqdm(drawing, total=len(numbers), desc=description, unit="picture"))
    images = torch.from_numpy(np.stack([scene.image for scene in drawn]))
    masks = torch.from_numpy(np.stack([scene.mask for scene in drawn]))
    labels = torch.tensor([scene.label for scene in drawn])
    return images.permute(0, 3, 1, 2), masks[:, None], labels


def _scene(number: tuple[int, int]) -> scenes.Scene:
    return scenes.draw(*number)


if __name__ == "__main__":
    typer.run(main)
