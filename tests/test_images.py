"""Image files of every mode and state of repair, and the way into a network and back."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from convad_fx import images
from convad_fx.errors import ImageError

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20  # height 3, width 4


def red(mode, size=(6, 4)):
    """A picture in `mode` that shows pure red, or its grey where the mode has no colours."""
    return Image.new("RGB", size, (255, 0, 0)).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("RGB", "png", (255, 0, 0)),
        ("RGBA", "png", (255, 0, 0)),
        ("P", "png", (255, 0, 0)),
        ("P", "gif", (255, 0, 0)),
        ("CMYK", "tiff", (255, 0, 0)),
        ("LAB", "tiff", (255, 0, 0)),
        ("L", "png", (76, 76, 76)),
        ("LA", "png", (76, 76, 76)),
        ("1", "png", None),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix, expected):
    path = tmp_path / f"red.{suffix}"
    if mode == "LAB":  # the colour red in CIELAB; Pillow has no plain conversion into it
        Image.new("LAB", (6, 4), (136, 208, 195)).save(path)
    else:
        red(mode).save(path)
    image = images.open_image(path)
    assert image.mode == "RGB"
    assert image.size == (6, 4)
    if expected is not None:
        assert np.abs(np.subtract(image.getpixel((2, 1)), expected)).max() <= 12


def test_cmyk_jpeg(tmp_path):
    red("CMYK").save(tmp_path / "red.jpg")
    assert (
        np.abs(
            np.subtract(images.open_image(tmp_path / "red.jpg").getpixel((0, 0)), (255, 0, 0))
        ).max()
        < 5
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_parts_show_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.putpixel((3, 1), (0, 0, 0, 255))
    suffix = "png" if mode != "PA" else "tiff"
    (image if mode == "RGBA" else image.convert("LA")).save(tmp_path / f"hole.{suffix}")
    opened = images.open_image(tmp_path / f"hole.{suffix}")
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((3, 1)) == (0, 0, 0)


def test_a_transparent_palette_entry_shows_white(tmp_path):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([9, 9, 9, 0, 0, 255])
    image.putpixel((3, 1), 1)
    image.save(tmp_path / "hole.png", transparency=0)
    opened = images.open_image(tmp_path / "hole.png")
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((3, 1)) == (0, 0, 255)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    path = tmp_path / f"deep.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 4 3 65535\n" + (RAMP.astype(">u2") * 257).tobytes())
    else:
        Image.fromarray(RAMP.astype(np.uint16) * 257).save(path)
    assert np.array_equal(np.asarray(images.open_image(path))[..., 0], RAMP)


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (RAMP.astype(np.float32), "floating-point"),
        (RAMP.astype(np.int32) * 100_000, "more than 16 bits"),
        (RAMP.astype(np.int32) - 300, "more than 16 bits"),
    ],
)
def test_values_without_a_known_black_and_white_are_refused(tmp_path, array, complaint):
    Image.fromarray(array).save(tmp_path / "odd.tiff")
    with pytest.raises(
        ImageError, match=rf"odd\.tiff holds .*{complaint}.*save it with 8 or 16 bits"
    ):
        images.open_image(tmp_path / "odd.tiff")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.new("RGB", (40, 24), "black")
    upright.paste((255, 0, 0), (0, 0, 8, 8))  # a red corner, top left
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    opened = images.open_image(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(opened), np.asarray(upright))


@pytest.mark.parametrize(
    "junk", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_broken_metadata_does_not_stop_a_good_picture(tmp_path, junk):
    red("RGB").save(tmp_path / "junk.jpg", exif=junk)
    assert images.open_image(tmp_path / "junk.jpg").size == (6, 4)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation_counts(tmp_path, suffix):
    path = tmp_path / f"film.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert images.open_image(path).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9])
def test_a_truncated_file_is_an_error_with_its_path(tmp_path, suffix, keep):
    rng = np.random.default_rng(0)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(ImageError, match=rf"cut\.{suffix} is (damaged|not an image)"):
        images.open_image(path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_file_that_is_no_image(tmp_path, content):
    (tmp_path / "note.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"note\.png is (damaged|not an image).*; "):
        images.open_image(tmp_path / "note.png")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: no such file; check the path"):
        images.open_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="is a folder; name the image files in it"):
        images.open_image(tmp_path)


def test_a_picture_that_would_fill_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    Image.new("1", (300, 200)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)  # less than it has: a warning in Pillow
    with pytest.raises(ImageError, match=r"bomb\.png has more than .* scale it down first"):
        images.open_image(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # less than half: an error in Pillow
    with pytest.raises(ImageError, match=r"bomb\.png has more than"):
        images.open_image(tmp_path / "bomb.png")


def test_postscript_is_not_run(tmp_path):
    red("RGB").save(tmp_path / "program.eps")
    with pytest.raises(ImageError, match="EPS files are programs, not pictures; convert it to PNG"):
        images.open_image(tmp_path / "program.eps")


@pytest.mark.parametrize("size", [(50, 31), (31, 50), (300, 17)])
@pytest.mark.parametrize("mean", [images.IMAGENET_MEAN, (0.5, 0.5, 0.5), (0.0, 0.0, 0.0)])
def test_displayable_undoes_the_normalisation_exactly(size, mean):
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    steps = images.standard(size=16, resize=20, mean=mean)
    x = images.to_input(picture, steps)
    assert (x.shape, x.dtype) == ((1, 3, 16, 16), torch.float32)
    # The same two steps, by Pillow and numpy alone.
    scale = 20 / min(size)
    resized = picture.resize(
        (
            20 if size[0] <= size[1] else int(size[0] * scale),
            20 if size[1] <= size[0] else int(size[1] * scale),
        ),
        Image.Resampling.BILINEAR,
    )
    left, top = round((resized.width - 16) / 2), round((resized.height - 16) / 2)
    expected = np.asarray(resized)[top : top + 16, left : left + 16]
    assert np.array_equal(images.displayable(x, steps), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1 pixel, not 0.*224 is usual"),
        ({"size": 32, "resize": 31}, "31 pixels cannot be cropped to 32.*at least `size`"),
        ({"mean": (0.5,)}, "do not fit three channels.*three numbers each"),
        ({"std": (1.0, 0.0, 1.0)}, "none of std zero"),
    ],
)
def test_preprocessing_numbers_that_do_not_fit(options, message):
    with pytest.raises(ImageError, match=message):
        images.standard(**options)
