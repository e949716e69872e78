"""The list of functions that emitted code may call."""

from __future__ import annotations

from convad_fx.artifact import allowed
from convad_fx.compiler.kernels import EMITTED_FUNCTIONS


def test_each_has_one_name_and_may_be_in_a_file() -> None:
    names = [function.__name__ for function in EMITTED_FUNCTIONS]
    assert len(set(names)) == len(names)
    for function in EMITTED_FUNCTIONS:
        assert allowed.function_of(allowed.name_of(function, "")) is function
    assert {"gate", "window_activity", "checked_mask", "cut_box", "cut_patch"} <= set(names)
