"""True masks of the objects, as files beside the images: `convad-fx tune --masks`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from convad_fx import images
from convad_fx.cli.images import image_files
from convad_fx.errors import MaskError
from convad_fx.explain.evaluator import Mask
from convad_fx.images import Preprocess


def mask_files(pictures: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The mask file of each image that has one: the same name, any ending.

    Raises:
        MaskError: no such folder or no mask in it, a mask that belongs to no image or to two, or
            two masks for one image.
    """
    if not folder.is_dir():
        raise MaskError(f"there is no folder {folder}", hint="pass `--masks` a folder of pictures")
    files = image_files(folder)
    if not files:
        raise MaskError(
            f"there are no masks in {folder}", hint="the mask of cat.jpg is called cat.png"
        )
    by_stem: dict[str, Path] = {}
    for file in files:
        if file.stem in by_stem:
            raise MaskError(
                f"{by_stem[file.stem]} and {file} are masks of the same picture", hint="keep one"
            )
        by_stem[file.stem] = file
    found: dict[Path, Path] = {}
    taken: dict[str, Path] = {}
    for picture in pictures:
        mask = by_stem.get(picture.stem)
        if mask is None:
            continue
        if picture.stem in taken and taken[picture.stem] != picture:
            raise MaskError(
                f"{mask} may belong to {taken[picture.stem]} or to {picture}",
                hint="give the pictures different names",
            )
        taken[picture.stem], found[picture] = picture, mask
    if left := [str(file) for stem, file in by_stem.items() if stem not in taken]:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise MaskError(
            f"there is no picture for the mask {', '.join(left[:3])}{more}",
            hint="the mask of cat.jpg is called cat.png; name every picture, or take the mask out",
        )
    return found


def read_mask(path: Path, picture: Image.Image, preprocess: Preprocess) -> Mask | None:
    """Where the object is in the network's input, (H, W); None if the crop removes all of it.

    The object is where the mask is brighter than half of its brightest pixel. The mask is resized
    and cropped as its image is.

    Raises:
        ImageError: the file cannot be read.
        MaskError: its size differs from the image's, or it is black all over.
    """
    drawn = images.open_image(path)
    if drawn.size != picture.size:
        raise MaskError(
            f"the mask {path} has {drawn.width} x {drawn.height} pixels, its picture "
            f"{picture.width} x {picture.height}",
            hint="draw it at the size of the picture",
        )
    levels = np.asarray(drawn).max(2)
    if not levels.any():
        raise MaskError(
            f"the mask {path} is black all over", hint="draw the object white, or take it out"
        )
    stencil = Image.fromarray((levels > levels.max() / 2).astype(np.uint8) * 255).convert("RGB")
    shown = images.displayable(images.to_input(stencil, preprocess), preprocess)
    mask: Mask = shown[:, :, 0] > 127
    return mask if mask.any() else None
