import numpy as np
import pytest

from convad_fx.demo.scenes import (
    CLASSES,
    SIZE,
    draw,
    held_out,
    held_out_numbers,
    training_numbers,
)

LABELS = range(len(CLASSES))


def test_there_are_enough_classes_and_no_name_stands_for_two():
    assert len(CLASSES) >= 8
    assert len(set(CLASSES)) == len(CLASSES)


@pytest.mark.parametrize("label", LABELS, ids=CLASSES)
def test_the_same_numbers_draw_the_same_picture(label):
    first, again, other = draw(label, 5), draw(label, 5), draw(label, 6)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("label", LABELS, ids=CLASSES)
def test_a_scene_is_a_picture_a_mask_and_a_label(label):
    scene = draw(label, 0)
    assert scene.image.shape == (SIZE, SIZE, 3)
    assert scene.image.dtype == np.uint8
    assert scene.mask.shape == (SIZE, SIZE)
    assert scene.mask.dtype == np.bool_
    assert scene.label == label


@pytest.mark.parametrize("label", LABELS, ids=CLASSES)
def test_the_whole_object_is_in_the_picture(label):
    for seed in range(20):
        mask = draw(label, seed).mask
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert not border.any(), f"seed {seed} is cut off"
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        extent = max(np.ptp(rows), np.ptp(columns)) + 1
        # Between about two units of the smallest and of the largest scale.
        assert 0.3 * SIZE < extent < 0.95 * SIZE, f"seed {seed} is {extent} pixels"
        assert 0.02 < mask.mean() < 0.6, f"seed {seed} covers {mask.mean():.0%}"


@pytest.mark.parametrize("label", LABELS, ids=CLASSES)
def test_the_mask_is_where_the_object_is(label):
    """Two objects with one seed share their background: what differs is an object, and no more."""
    for seed in range(5):
        scene, other = draw(label, seed), draw((label + 1) % len(CLASSES), seed)
        differs = (scene.image != other.image).any(axis=2)
        either = scene.mask | other.mask
        assert not (differs & ~either).any(), "something of an object lies outside its mask"
        # A colour may meet the same colour behind it, but not often.
        alone = scene.mask & ~other.mask
        assert differs[alone].mean() > 0.95, "the mask holds pixels that show only background"


def test_the_classes_differ_in_shape():
    """Upright or not, no two classes leave the same silhouettes on the same seed."""
    for seed in range(3):
        silhouettes = [draw(label, seed).mask.tobytes() for label in LABELS]
        assert len(set(silhouettes)) == len(CLASSES)


def test_held_out_pictures_are_of_every_class_and_none_that_training_draws():
    scenes = held_out(len(CLASSES))
    assert [scene.label for scene in scenes] == list(LABELS)
    seen = {seed for run in range(3) for _, seed in training_numbers(5000, run)}
    assert not seen & {seed for _, seed in held_out_numbers(5000)}


def test_training_cannot_reach_the_held_out_seeds():
    with pytest.raises(ValueError, match="exceeds the seeds"):
        training_numbers(10_000, run=10**9)


def test_runs_of_training_share_no_picture():
    assert not set(training_numbers(100, run=0)) & set(training_numbers(100, run=1))


@pytest.mark.parametrize("label", [-1, len(CLASSES)])
def test_an_unknown_class_is_refused(label):
    with pytest.raises(IndexError, match="does not exist"):
        draw(label, 0)
