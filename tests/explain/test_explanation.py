"""Explanations as values: nothing is lost in writing them down."""

from __future__ import annotations

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from convad_fx.explain import DamagedExplanation, Explanation, Search
from convad_fx.explain.encoding import decode_mask, encode_mask

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)


def explanation(mask: np.ndarray, responsibility: np.ndarray) -> Explanation:
    return Explanation(
        mask=mask,
        responsibility=responsibility,
        target=3,
        target_name="猫, $cat$",
        gamma=0.9,
        confidence_whole=1 / 3,
        confidence_kept=0.31,
        confidence_recheck=0.31 + 1e-9,
        sufficient=True,
        evaluations=1234,
        policy={"tau": 0.5, "attribution": "positional"},
        seed=2**70,
        search=Search(partitions=3, confidence=0.5),
        image_digest="ab" * 32,
        versions={"torch": "2"},
    )


PLAIN = explanation(np.eye(4, 6, dtype=bool), np.eye(4, 6))


def test_a_notebook_shows_the_map_and_the_kept_pixels() -> None:
    with Image.open(io.BytesIO(PLAIN._repr_png_())) as image:
        pixels = np.asarray(image)[18::37, 18::37].astype(int)  # one of each magnified pixel
    assert pixels.shape[:2] == (4, 13)
    kept = pixels[:, 7:, 0] > 200
    assert np.array_equal(kept, PLAIN.mask)
    bright = pixels[:, :6].sum(2) > 300
    assert np.array_equal(bright, PLAIN.mask)


def test_a_notebook_shows_names_as_text_not_as_html() -> None:
    why = dataclasses.replace(PLAIN, target_name="<script>alert(1)</script>")
    assert "<script>" not in why._repr_html_()
    assert "&lt;script&gt;" in why._repr_html_()
    png = base64.b64encode(why._repr_png_()).decode()
    assert png in why._repr_html_()


@given(hnp.arrays(np.bool_, SHAPES))
def test_masks_come_back(mask: np.ndarray) -> None:
    runs = encode_mask(mask)
    assert np.array_equal(decode_mask(runs, mask.shape), mask)
    assert sum(runs) == mask.size
    assert all(run > 0 for run in runs[1:])


@given(st.data())
def test_explanations_come_back_bit_for_bit(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    floats = st.floats(0, 1e6, width=32)
    why = explanation(
        data.draw(hnp.arrays(np.bool_, shape)),
        data.draw(hnp.arrays(np.float32, shape, elements=floats)),
    )
    back = Explanation.from_json(why.to_json())
    assert back == why
    assert hash(back) == hash(why)
    assert np.array_equal(back.mask, why.mask)
    assert np.array_equal(back.responsibility, why.responsibility)
    for field in dataclasses.fields(Explanation):
        if field.name not in ("mask", "responsibility"):
            assert getattr(back, field.name) == getattr(why, field.name)


def test_the_dict_is_plain_and_has_no_maps() -> None:
    content = json.loads(json.dumps(PLAIN.to_dict()))
    assert content["size"] == pytest.approx(4 / 24)
    assert (content["pixels"], content["shape"]) == (4, [4, 6])
    assert content["search"]["partitions"] == 3
    assert not {"mask", "responsibility"} & set(content)


def test_a_map_of_few_values_is_stored_small() -> None:
    values = np.zeros((224, 224))
    values[50:90, 60:170] = 2 / 3
    assert len(explanation(values > 0, values).to_json()) < 4000


def test_arrays_are_copies_that_torch_takes_without_a_warning() -> None:
    mask = np.zeros((2, 2), bool)
    why = explanation(mask, np.zeros((2, 2)))
    mask[:] = True
    assert why.size == 0
    assert not torch.from_numpy(why.mask).any()
    with pytest.raises(dataclasses.FrozenInstanceError):
        why.gamma = 1.0  # type: ignore[misc]


def test_explanations_that_differ_are_not_equal() -> None:
    assert dataclasses.replace(PLAIN, gamma=0.8) != PLAIN
    assert dataclasses.replace(PLAIN, mask=~PLAIN.mask) != PLAIN
    assert PLAIN != "an explanation"


def edited(**changes: object) -> str:
    return json.dumps({**json.loads(PLAIN.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not an explanation: JSONDecodeError.*pass the text"),
        ("[]", "not an explanation: TypeError"),
        ('{"format": 4}', "not an explanation: KeyError: 'shape'"),
        (edited(format=99), "format 99, this version reads 4; use the version"),
        (edited(mask=[3]), "runs do not fill 4 x 6 pixels; the file was truncated"),
        (edited(mask=[30, -6]), "runs do not fill"),
        (edited(responsibility="AAAA"), "not an explanation: error"),
        (edited(responsibility="!"), "not an explanation: Error"),
        (edited(search={"partitions": 0}), "not an explanation: PolicyError: partitions"),
        (edited(search={"hurry": 1}), "not an explanation: TypeError"),
    ],
)
def test_damaged_texts_are_named_as_such(text: str, message: str) -> None:
    with pytest.raises(DamagedExplanation, match=message):
        Explanation.from_json(text)
