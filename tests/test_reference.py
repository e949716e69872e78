"""The reference itself: small cases worked out by hand, and the laws it has to obey on its own.

No compiler takes part here: what fails here is the definition, or the reading of it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, note
from hypothesis import strategies as st
from reference import reference, reference_activity
from strategies import Network, build, images, masks, networks, policies, seeds
from torch import Tensor, nn


def _policy(**fields: Any) -> SimpleNamespace:
    default = {
        "tau": 0.0,
        "attribution": "positional",
        "input": "gate",
        "pool": "dilute",
        "fill": "zero",
    }
    return SimpleNamespace(**default | fields)


def _mask(text: str) -> Tensor:
    """`#` is kept, `.` is hidden; one line of text for each row of the grid."""
    rows = [[cell == "#" for cell in line] for line in text.split()]
    return torch.tensor(rows)[None, None]


def _ones(module: nn.Module, bias: float = 0.0) -> nn.Module:
    with torch.no_grad():
        module.weight.fill_(1.0)
        if module.bias is not None:
            module.bias.fill_(bias)
    return module


def _conv(inputs: int, outputs: int, kernel: Any, bias: float = 0.0, **options: Any) -> nn.Module:
    return _ones(nn.Conv2d(inputs, outputs, kernel, **options), bias)


class _Of(nn.Module):
    """A network from a function of its layers and the image."""

    def __init__(self, fn: Any, *layers: nn.Module) -> None:
        super().__init__()
        self.fn, self.layers = fn, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x, *self.layers)


def _answer(model: nn.Module, x: Tensor, mask: Tensor, **fields: Any) -> Tensor:
    return reference(model.eval(), x, mask, _policy(**fields))


def _activity(
    model: nn.Module, mask: Tensor, name: str, channels: int = 1, **fields: Any
) -> Tensor:
    x = torch.ones(1, channels, *mask.shape[2:])
    return reference_activity(model.eval(), x, mask, _policy(**fields))[name]


def assert_activity(actual: Tensor, expected: str) -> None:
    assert torch.equal(actual, _mask(expected)), f"\n{actual[0, 0].int()}\nexpected\n{expected}"


ONE_PIXEL = """
    ....
    .#..
    ....
    ....
"""
X = torch.arange(16.0).reshape(1, 1, 4, 4)


# --- Windows --------------------------------------------------------------------------------------


def test_positional_convolution_keeps_the_cell() -> None:
    model = nn.Sequential(_conv(1, 1, 3, bias=0.5, padding=1))
    expected = torch.zeros(1, 1, 4, 4)
    expected[0, 0, 1, 1] = 5.5  # the one pixel, 5, and the bias; the neighbours read as zero
    assert torch.equal(_answer(model, X, _mask(ONE_PIXEL)), expected)


def test_receptive_convolution_spreads() -> None:
    model = nn.Sequential(_conv(1, 1, 3, padding=1))
    active = _activity(model, _mask(ONE_PIXEL), "_0", attribution="receptive")
    assert_activity(active, "###. ###. ###. ....")


def test_padding_counts_neither_above_nor_below() -> None:
    # One of 4 cells in the corner, of 6 at the edge, of 9 inside.
    model = nn.Sequential(_conv(1, 1, 3, padding=1))
    for tau, expected in (
        (0.125, "###. #... #... ...."),
        (0.1, "###. ###. ###. ...."),
        (0.2, "#... .... .... ...."),
        (0.25, ".... .... .... ...."),
    ):
        active = _activity(model, _mask(ONE_PIXEL), "_0", attribution="receptive", tau=tau)
        assert_activity(active, expected)


def test_stride_takes_the_share_of_its_window() -> None:
    model = nn.Sequential(_conv(1, 1, 2, stride=2))
    mask = _mask("#... .... ##.. ####")
    assert_activity(_activity(model, mask, "_0"), "#. ##")
    assert_activity(_activity(model, mask, "_0", tau=0.25), ".. ##")
    assert_activity(_activity(model, mask, "_0", tau=0.5), ".. #.")


def test_dilation_skips_cells() -> None:
    model = nn.Sequential(_conv(1, 1, 2, dilation=2))
    # Output (0, 0) reads rows and columns 0 and 2 only.
    assert_activity(_activity(model, _mask(ONE_PIXEL), "_0"), ".. .#")


def test_explicit_padding_does_not_exist() -> None:
    # TensorFlow's asymmetric padding before a strided window: the last window reads 1 real cell.
    model = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), _conv(1, 1, 3, stride=2))
    mask = _mask(".... .... .... ...#")
    assert_activity(_activity(model, mask, "_0"), "....# ....# ....# ...## #####")
    assert_activity(_activity(model, mask, "_1", tau=0.125), ".. .#")
    # 1 of the 4 cells that exist in that window, not 1 of 9 nor 6 of 9.
    assert_activity(_activity(model, mask, "_1", tau=0.25), ".. ..")
    assert_activity(_activity(model, torch.ones_like(mask), "_1", tau=0.75), "## ##")


def test_a_constant_border_keeps_its_value() -> None:
    model = nn.Sequential(nn.ConstantPad2d(1, 3.0), _conv(1, 1, 3))
    answer = _answer(model, X, _mask(ONE_PIXEL))
    assert answer[0, 0, 0, 0] == 5 * 3 + 5
    # A window without any kept pixel is inactive, whatever the border holds.
    assert answer[0, 0, 3, 3] == 0


def test_reflection_copies_activity() -> None:
    model = nn.Sequential(nn.ReflectionPad2d((1, 0, 1, 0)))
    assert_activity(_activity(model, _mask(ONE_PIXEL), "_0"), "#.#.. ..... #.#.. ..... .....")


def test_group_convolution_counts_its_own_group() -> None:
    left, right = _conv(1, 1, 2, stride=2), _conv(1, 1, 1, stride=2)
    last = _conv(2, 2, 1, groups=2)
    model = _Of(lambda x, a, b, c: c(torch.cat([a(x), b(x)], 1)), left, right, last)
    active = _activity(model, _mask(ONE_PIXEL), "layers_2")
    assert active.tolist() == [[[[True, False], [False, False]], [[False, False], [False, False]]]]
    # Without groups both channels are counted: 1 of 2 is more than 1/4 and not more than 1/2.
    model.layers[2] = _conv(2, 1, 1)
    assert_activity(_activity(model, _mask(ONE_PIXEL), "layers_2", tau=0.0), "#. ..")
    assert_activity(_activity(model, _mask(ONE_PIXEL), "layers_2", tau=0.5), ".. ..")


def test_transposed_convolution_reads_backwards() -> None:
    model = nn.Sequential(_ones(nn.ConvTranspose2d(1, 1, 2, stride=2)))
    assert_activity(_activity(model, _mask(".# ##"), "_0"), "..## ..## #### ####")


def test_strict_keeps_only_whole_windows() -> None:
    model = nn.Sequential(_conv(1, 1, 3, padding=1), _conv(1, 1, 3, padding=1))
    mask = _mask("###. ###. ###. ....")
    assert_activity(_activity(model, mask, "_0", input="strict"), "##.. ##.. .... ....")
    # Only the first reader is strict: the second is positional again.
    assert_activity(_activity(model, mask, "_1", input="strict"), "##.. ##.. .... ....")


def test_raw_shows_the_first_layer_everything() -> None:
    model = nn.Sequential(_conv(1, 1, 3, padding=1), _conv(1, 1, 3, padding=1))
    first = torch.zeros(1, 1, 4, 4)
    first[0, 0, 1, 1] = X[0, 0, :3, :3].sum()
    answer = _answer(model, X, _mask(ONE_PIXEL), input="raw")
    assert answer[0, 0, 1, 1] == first.sum()
    assert answer[0, 0].count_nonzero() == 1


def test_an_answer_at_image_level_is_gated_too() -> None:
    answer = _answer(_Of(lambda x: x + 1), X, _mask(ONE_PIXEL), input="raw")
    assert answer.sum() == answer[0, 0, 1, 1] == 6


# --- Pooling and reductions -----------------------------------------------------------------------


def test_an_inactive_cell_never_wins_a_maximum() -> None:
    model = nn.Sequential(nn.MaxPool2d(2))
    x = -1 - X  # hidden cells read as zero would win
    answer = _answer(model, x, _mask("#... .... ..## ..##"))
    assert answer[0, 0].tolist() == [[-1.0, 0.0], [0.0, -11.0]]


def test_means_dilute_or_renormalise() -> None:
    mask = _mask("##.. .... .... ....")
    for pool in (nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(4), _Of(lambda x: x.mean((2, 3), True))):
        model = nn.Sequential(pool)
        assert _answer(model, X + 1, mask).item() == 3 / 16
        assert _answer(model, X + 1, mask, pool="renormalize").item() == 3 / 2
        nothing = _answer(model, X + 1, torch.zeros_like(mask), pool="renormalize")
        assert nothing.item() == 0
    model = nn.Sequential(nn.AvgPool2d(2))
    assert _answer(model, X + 1, mask, pool="renormalize")[0, 0].tolist() == [[1.5, 0.0], [0, 0]]


def test_a_global_reduction_ignores_tau() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1))
    assert _activity(model, _mask(ONE_PIXEL), "_0", tau=0.75).item()
    assert not _activity(model, torch.zeros(1, 1, 4, 4, dtype=torch.bool), "_0").item()
    # A grid that happens to be 1x1 is not global: tau counts.
    window = nn.Sequential(_conv(1, 1, 4))
    assert not _activity(window, _mask(ONE_PIXEL), "_0", tau=0.75).item()


def test_global_maximum_of_nothing_is_zero() -> None:
    model = _Of(lambda x: torch.amax(x, (2, 3)))
    assert _answer(model, -1 - X, torch.zeros(1, 1, 4, 4, dtype=torch.bool)).item() == 0
    assert _answer(model, -1 - X, _mask(ONE_PIXEL)).item() == -6


def test_flatten_into_linear_is_global() -> None:
    model = nn.Sequential(nn.Flatten(), _ones(nn.Linear(16, 2), bias=1.0))
    assert _answer(model, X, _mask(ONE_PIXEL)).tolist() == [[6.0, 6.0]]
    # Nothing is active, so the network says what it says to zeros: its bias, not zero.
    assert _answer(model, X, torch.zeros(1, 1, 4, 4, dtype=torch.bool)).tolist() == [[1.0, 1.0]]


def test_a_mean_over_one_axis_takes_the_share() -> None:
    model = _Of(lambda x: x.mean(3))
    mask = _mask("#... ##.. ###. ....")
    assert _activity(model, mask, "mean", tau=0.25).tolist() == [[[False, True, True, False]]]


def test_statistics_over_positions_read_zeros_and_leave_activity() -> None:
    norm = nn.GroupNorm(1, 1, eps=0.0)
    model = nn.Sequential(norm)
    mask = _mask("#### .... .... ....")
    x = torch.full((1, 1, 4, 4), 4.0)
    answer = _answer(model, x, mask)
    assert answer[0, 0, 0].tolist() == pytest.approx([3**0.5] * 4)  # mean 1, variance 3
    assert answer[0, 0, 1:].count_nonzero() == 0


def test_resizing_reads_only_cells_of_weight() -> None:
    nearest = _Of(lambda x: F.interpolate(x, scale_factor=2))
    assert_activity(_activity(nearest, _mask(".# .."), "interpolate"), "..## ..## .... ....")
    linear = _Of(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"))
    assert_activity(_activity(linear, _mask("#. .."), "interpolate"), "###. ###. ###. ....")
    half = _Of(lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear"))
    assert_activity(_activity(half, _mask(ONE_PIXEL), "interpolate"), "#. ..")


# --- Joins ----------------------------------------------------------------------------------------


def _pair(join: Any) -> nn.Module:
    """Joins the image with the image moved by one column; what is moved in is zero."""
    return _Of(lambda x: join(x, F.pad(x, (1, -1))))


def test_sum_is_the_union_and_product_the_intersection() -> None:
    mask = _mask("#... .... ..#. ....")
    assert_activity(_activity(_pair(torch.add), mask, "add"), "##.. .... ..## ....")
    assert_activity(_activity(_pair(torch.mul), mask, "mul"), "#... .... .... ....")
    # With tau 1/2 both have to be active, or the only one that exists.
    assert_activity(_activity(_pair(torch.sub), mask, "sub", tau=0.5), "#... .... .... ....")


def test_maximum_of_two_grids() -> None:
    model = _pair(torch.maximum)
    answer = _answer(model, -1 - X, _mask(".#.. .... .... ...."))
    assert answer[0, 0, 0].tolist() == [0.0, -2.0, -2.0, 0.0]


def test_squeeze_and_excitation_keeps_the_grid() -> None:
    pool, layer = nn.AdaptiveAvgPool2d(1), _conv(1, 1, 1, bias=2.0)
    model = _Of(lambda x, p, c: x * c(p(x)), pool, layer)
    for name, full in (("layers_0", False), ("layers_1", False), ("mul", True)):
        size = (4, 4) if full else (1, 1)
        assert _activity(model, _mask(ONE_PIXEL), name).shape == (1, 1, *size)
    answer = _answer(model, X, _mask(ONE_PIXEL))
    assert answer[0, 0, 1, 1] == 5 * (2 + 5 / 16)
    assert answer[0, 0].count_nonzero() == 1


def test_concatenation_of_different_activities_splits_the_channels() -> None:
    model = _Of(lambda x, a, b: torch.cat([a(x), b(x)], 1), _conv(1, 2, 2, stride=2), nn.Identity())
    model.layers[1] = _conv(1, 1, 1, stride=2)
    active = _activity(model, _mask(ONE_PIXEL), "cat")
    assert active.shape == (1, 3, 2, 2)
    assert active[0, :, 0, 0].tolist() == [True, True, False]


def test_concatenation_of_one_activity_stays_one() -> None:
    branches = _conv(1, 2, 3, padding=1), _conv(1, 1, 5, padding=2)
    model = _Of(lambda x, a, b: torch.cat([a(x), b(x)], 1), *branches)
    assert _activity(model, _mask(ONE_PIXEL), "cat").shape == (1, 1, 4, 4)
    receptive = _activity(model, _mask(ONE_PIXEL), "cat", attribution="receptive")
    assert receptive.shape == (1, 3, 4, 4)


def test_a_window_of_one_cell_is_no_window() -> None:
    model = _Of(lambda x, a: torch.cat([x, a(x)], 1), _conv(1, 2, 1))
    for fields in ({"attribution": "receptive", "tau": 0.5}, {"input": "strict"}):
        assert _activity(model, _mask(ONE_PIXEL), "cat", **fields).shape == (1, 1, 4, 4)


def test_concatenated_constants_do_not_exist() -> None:
    last = _conv(2, 1, 1)
    model = _Of(lambda x, c: c(torch.cat([x, torch.ones_like(x)], 1)), last)
    assert_activity(_activity(model, _mask(ONE_PIXEL), "layers_0", tau=0.75), ONE_PIXEL)


def test_padded_channels_have_the_activity_of_their_position() -> None:
    model = _Of(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)))
    assert _activity(model, _mask(ONE_PIXEL), "pad").shape == (1, 1, 4, 4)


def test_different_global_tensors_are_gated_once_they_are_joined_by_channels() -> None:
    def model(x: Tensor, strided: nn.Module, bias: nn.Module) -> Tensor:
        return bias(torch.cat([x.mean((2, 3)), strided(x).mean((2, 3))], 1))

    linear = _ones(nn.Linear(2, 1))
    net = _Of(model, _conv(1, 1, 1, bias=9.0, stride=2), linear)
    # The strided branch sees nothing of the pixel in row 1: it counts as zero, bias and all.
    assert _answer(net, X, _mask(ONE_PIXEL)).item() == 5 / 16
    active = _activity(net, _mask(ONE_PIXEL), "cat")
    assert active.tolist() == [[True, False]]


# --- Relabelling ----------------------------------------------------------------------------------


def test_relabelling_moves_activity() -> None:
    mask = _mask("#... .... .... ....")
    turned = _Of(lambda x: x.transpose(2, 3).flatten(2)[:, :, 1:].unflatten(2, (3, 5)))
    active = _activity(turned, mask, "unflatten")
    assert active.shape == (1, 1, 3, 5)
    assert not active.any()
    unshuffled = _activity(_Of(lambda x: F.pixel_unshuffle(x, 2)), mask, "pixel_unshuffle")
    assert unshuffled.shape == (1, 4, 2, 2)
    assert unshuffled.sum() == 1
    shuffled = _Of(lambda x: F.pixel_shuffle(x, 2))
    assert_activity(_activity(shuffled, _mask(".# .."), "pixel_shuffle", 4), "..## ..## .... ....")


def test_shuffling_the_channels_moves_no_activity() -> None:
    def shuffle(x: Tensor) -> Tensor:
        batch, channels = x.shape[0], x.shape[1]
        pairs = x.view(batch, 2, channels // 2, x.shape[2], x.shape[3])
        return pairs.transpose(1, 2).reshape(batch, channels, x.shape[2], x.shape[3])

    assert _activity(_Of(shuffle), _mask(ONE_PIXEL), "reshape", 6).shape == (1, 1, 4, 4)


def test_an_in_place_activation_changes_what_others_hold() -> None:
    def model(x: Tensor, relu: nn.Module) -> Tensor:
        y = x * 1.0
        return relu(y) + y

    answer = _answer(_Of(model, nn.ReLU(inplace=True)), X - 6, torch.ones(1, 1, 4, 4).bool())
    assert torch.equal(answer, 2 * (X - 6).relu())


def test_an_alias_is_changed_with_what_it_is_an_alias_of() -> None:
    def alias(x: Tensor) -> Tensor:
        y = x * 1.0
        z = y.contiguous()
        z += 1
        return y + z

    def copy(x: Tensor) -> Tensor:
        y = x.transpose(2, 3)
        z = y.contiguous()
        z += 1
        return y + z

    every = torch.ones(1, 1, 4, 4).bool()
    assert torch.equal(_answer(_Of(alias), X, every), 2 * (X + 1))
    assert torch.equal(_answer(_Of(copy), X, every), 2 * X.mT + 1)


def test_reading_what_changed_through_a_view_is_refused() -> None:
    def model(x: Tensor) -> Tensor:
        y = x * 1.0
        y[:, :, 1:].relu_()
        return y

    with pytest.raises(NotImplementedError, match="through a view"):
        _answer(_Of(model), X, _mask(ONE_PIXEL))


def test_an_in_place_dropout_changes_nothing_here() -> None:
    def model(x: Tensor, drop: nn.Module) -> Tensor:
        y = x * 1.0
        return drop(y[:, :, 1:]) + y[:, :, :-1]

    answer = _answer(_Of(model, nn.Dropout(inplace=True)), X, torch.ones(1, 1, 4, 4).bool())
    assert torch.equal(answer, X[:, :, 1:] + X[:, :, :-1])


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.roll(x, 1, 2),
        lambda x: x.sort(-1)[0],
        lambda x: x.cumsum(2),
        lambda x: x.softmax(2),
        lambda x: x.flatten(0, 1),
        lambda x: x.max(2)[1],
        lambda x: x.sum(),
    ],
)
def test_what_is_not_defined_is_not_guessed(fn: Any) -> None:
    model = _Of(lambda x: fn(x) * 2)
    with pytest.raises((NotImplementedError, TypeError)):
        _answer(model, X, _mask(ONE_PIXEL))


def test_batches_of_one_stretch() -> None:
    model = nn.Sequential(_conv(1, 1, 3, padding=1), nn.Flatten(), _ones(nn.Linear(16, 2)))
    many = torch.cat([_mask(ONE_PIXEL), ~_mask(ONE_PIXEL)])
    answers = _answer(model, X, many)
    assert answers.shape == (2, 2)
    assert torch.equal(_answer(model, X.expand(2, 1, 4, 4), many[:1])[1], answers[0])


# --- The laws, of the reference alone, over random networks ---------------------------------------


def _case(data: st.DataObject, spec: Network, **fixed: Any) -> tuple[SimpleNamespace, Tensor]:
    policy = data.draw(policies(**fixed))
    return policy, data.draw(masks(spec.grid))


@given(networks(), seeds, policies())
def test_keeping_everything_is_the_model(spec: Network, seed: int, policy: SimpleNamespace) -> None:
    model, x = build(spec, seed).double(), images(spec, seed, batch=2).double()
    with torch.no_grad():
        expected = model(x.clone())
    assert torch.isfinite(expected).all()
    actual = reference(model, x, torch.ones(1, 1, *spec.grid, dtype=torch.bool), policy)
    # To rounding only: gating copies, a copy of a strided view has another layout, and layout
    # decides the order of a sum.
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@given(networks(), seeds, st.data())
def test_hidden_values_do_not_leak(spec: Network, seed: int, data: st.DataObject) -> None:
    policy, mask = _case(data, spec, input=data.draw(st.sampled_from(["gate", "strict"])))
    model, x = build(spec, seed), images(spec, seed)
    expected = reference(model, x, mask, policy)
    assert torch.isfinite(expected).all()
    for hidden in (torch.nan, torch.inf, 1e30):
        poisoned = torch.where(mask, x, hidden)
        assert torch.equal(reference(model, poisoned, mask, policy), expected)


@given(networks(), seeds, st.data())
def test_activity_is_monotone(spec: Network, seed: int, data: st.DataObject) -> None:
    policy, small = _case(data, spec)
    large = small | data.draw(masks(spec.grid))
    model, x = build(spec, seed), images(spec, seed)
    before = reference_activity(model, x, small, policy)
    after = reference_activity(model, x, large, policy)
    note(str(before))
    assert all(bool((~active | after[name]).all()) for name, active in before.items())


@given(networks(), seeds, policies())
def test_everything_is_active_where_everything_is_kept(
    spec: Network, seed: int, policy: SimpleNamespace
) -> None:
    mask = torch.ones(1, 1, *spec.grid, dtype=torch.bool)
    activities = reference_activity(build(spec, seed), images(spec, seed), mask, policy)
    assert [name for name, active in activities.items() if not active.all()] == []


@given(networks(), seeds)
def test_networks_are_reproducible_and_in_evaluation_mode(spec: Network, seed: int) -> None:
    first, second = build(spec, seed), build(spec, seed)
    assert not any(module.training for module in first.modules())
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert eval(repr(spec), vars(__import__("strategies"))) == spec


def test_neighbours_are_the_mean_of_what_is_active_around() -> None:
    """One row; the convolution takes what is one to the left: what a hidden cell reads as."""
    model = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([1.0, 0, 0]))
    x = torch.tensor([[[[1.0, 3, 100, 7, 100, 100, 100, 2]]]])
    mask = _mask("##.#...#")
    # Read: 1 3 5 7 7 0 2 2; what follows an inactive cell and is active itself is seen.
    answer = _answer(model, x, mask, fill="neighbour")
    assert answer.flatten().tolist() == [0, 1, 0, 5, 0, 0, 0, 2]
    assert _answer(model, x, mask).flatten().tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
