"""Conversion patches torch for all threads while it traces; others must not notice."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import convad_fx

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Doubling(nn.Module):
    """Asks on another thread, while it is traced, what is a tensor there."""

    def __init__(self, ask: Callable[[], None]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.ask = nn.Conv2d(3, 4, 3), ask

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor):
            x = x * 2
        thread = threading.Thread(target=self.ask)
        thread.start()
        thread.join()
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize("front_end", ["symbolic", "export"])
def test_another_thread_runs_networks_while_one_is_converted(front_end: str) -> None:
    results: list[Tensor] = []
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()

    def ask() -> None:
        with torch.no_grad():
            results.append(other(IMAGE))
            results.append(model.conv(IMAGE))
            assert not isinstance("x", Tensor)

    model = Doubling(ask).eval()
    with torch.no_grad():
        expected = [other(IMAGE), model.conv(IMAGE)]
        masked = convad_fx.convert(model, IMAGE, front_end=front_end)
        assert torch.equal(masked(IMAGE), model(IMAGE))
    assert len(results) > 4
    for i, result in enumerate(results):
        # torch.export switches kernels for all threads, which round differently
        torch.testing.assert_close(result, expected[i % 2], rtol=1e-5, atol=1e-6)


def patched() -> tuple[object, ...]:
    """What tracing replaces for all threads."""
    module = nn.Module
    return isinstance, module.__call__, module.__getattr__, torch.autocast.__enter__


@pytest.mark.parametrize("front_end", ["symbolic", "export"])
def test_threads_that_convert_at_once(front_end: str) -> None:
    before = patched()
    failures: list[object] = []

    def convert() -> None:
        try:
            model = Doubling(lambda: None).eval()
            masked = convad_fx.convert(model, IMAGE, front_end=front_end)
            with torch.no_grad():
                assert torch.equal(masked(IMAGE), model(IMAGE))
        except BaseException as error:  # noqa: BLE001 (reported below)
            failures.append(error)

    threads = [threading.Thread(target=convert) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert patched() == before
