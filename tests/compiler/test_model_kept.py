"""What a model may do in its forward or carry with it, and must not suffer from converting."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import convad_fx


class Wrapped(nn.Module):
    def __init__(self, forward: Callable[[Wrapped, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 1, 1)
        self.last = nn.Conv2d(8, 4, 3, 1, 1)
        self.seen: Tensor | None = None
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def plain(net: Wrapped, x: Tensor) -> Tensor:
    return net.last(net.first(x)).mean((2, 3))


def remembers(net: Wrapped, x: Tensor) -> Tensor:
    net.seen = net.first(x)
    return net.last(net.seen).mean((2, 3))


X = torch.rand(2, 3, 8, 8)
MASK = torch.rand(2, 1, 8, 8) > 0.5


def assert_laws(model: nn.Module) -> None:
    masked = convad_fx.convert(model, X)
    with torch.no_grad():
        assert torch.equal(masked(X), model(X))
        assert torch.equal(masked(torch.where(MASK, X, torch.nan), MASK), masked(X, MASK))


@pytest.mark.parametrize("way", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_the_model_itself_count(way: str) -> None:
    model = Wrapped(plain).eval()
    if way == "register_forward_hook":
        model.register_forward_hook(lambda module, given, out: out * 2)
    else:
        model.register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    assert_laws(model)


def test_what_forward_remembers_is_not_a_proxy_afterwards() -> None:
    model = Wrapped(remembers).eval()
    assert_laws(model)
    model.seen = None
    convad_fx.check(model, X)
    assert model.seen is None


def test_parametrized_layers() -> None:
    model = Wrapped(plain).eval()
    nn.utils.parametrizations.weight_norm(model.first)
    assert_laws(model.eval())


@pytest.mark.parametrize(
    "join",
    [
        lambda net, x: net.last(torch.cat(torch.split(net.first(x), [3, 5], 2), 2)).mean((2, 3)),
        lambda net, x: net.last(torch.cat(net.first(x).chunk(2, 3), 3)).mean((2, 3)),
        lambda net, x: net.last(net.first(x).flatten(2).max(-1)[0][..., None, None]).mean((2, 3)),
    ],
)
def test_tuples_handed_on_as_they_are(join: Callable[[Wrapped, Tensor], Tensor]) -> None:
    assert_laws(Wrapped(join).eval())


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x).mean((2, 3))


def test_counting_calls_is_not_done_by_converting() -> None:
    model = Counts().eval()
    assert_laws(model)
    model.calls.zero_()
    convad_fx.check(model, X)
    assert model.calls.item() == 0


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, counts = Wrapped(plain).eval(), Counts().eval()
        model.register_buffer("nothing", torch.full((2,), torch.nan))
        assert_laws(model)
        counts.calls.fill_(7)
    assert_laws(model)
    # of its buffers nobody counts how often they are written to: the values tell
    with torch.inference_mode():
        assert convad_fx.check(counts, X).front_end == "torch.export"  # as without inference mode
        assert counts.calls.item() == 7


class Forgets(Counts):
    def forward(self, x: Tensor) -> Tensor:
        self.calls.fill_(torch.nan)
        return self.conv(x).mean((2, 3))


def test_nan_written_in_inference_mode_is_taken_back() -> None:
    with torch.inference_mode():
        model = Forgets().eval()
        convad_fx.check(model, X)
        assert model.calls.item() == 0


class Dropped(nn.Module):
    """An in-place dropout, which does nothing in eval mode, on memory that is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 4, 3), nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return (self.drop(z.contiguous()) + z).mean((2, 3))


def test_a_dropout_in_place_changes_nothing() -> None:
    assert_laws(Dropped().eval())
