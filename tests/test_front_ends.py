"""Both front ends obey the same laws: random networks, captured by torch.export."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import Phase, assume, given, settings
from strategies import Network, build, images, networks, policies, seeds

import convad_fx
from convad_fx.errors import UntraceableModel


# Exporting takes seconds, so a failure is reported as it was drawn and not shrunk.
@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(networks(max_blocks=3), seeds, policies())
def test_exported_networks_obey_the_laws(spec: Network, seed: int, policy: SimpleNamespace) -> None:
    model, x = build(spec, seed).double(), images(spec, seed, batch=2).double()
    try:
        masked = convad_fx.convert(model, x, convad_fx.Policy(**vars(policy)), front_end="export")
    except UntraceableModel:  # torch.export has limits of its own
        assume(False)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 1, *spec.grid, generator=generator) < 0.5
    with torch.no_grad():
        assert torch.equal(masked(x), model(x))
        together = masked(x, mask)
        if policy.input != "raw":
            assert torch.equal(masked(torch.where(mask, x, torch.nan), mask), together)
        alone = torch.cat([masked(x[i : i + 1], mask[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-9)
    assert masked.state_dict().keys() == model.state_dict().keys()
    assert all(a is b for a, b in zip(masked.parameters(), model.parameters(), strict=True))
