"""Hypothesis profiles (HYPOTHESIS_PROFILE=dev, ci or nightly) and the optional kit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# One process per core: threads of their own would only get in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Building a network and tracing it is slow beside drawing it, so time says nothing about an
# example.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}

settings.register_profile("dev", max_examples=25, **_COMMON)
settings.register_profile("ci", max_examples=60, derandomize=True, **_COMMON)
settings.register_profile("nightly", max_examples=3000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kit",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder of real weights and images; the tests that need it are skipped without it",
    )
    parser.addoption(
        "--refresh", action="store_true", help="write the golden tables anew; then read the diff"
    )


@pytest.fixture(scope="session", autouse=True)
def _always_select_strategies() -> Iterator[None]:
    """Selection never pays on small networks; all strategies are tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convad_fx.engine.probe.MAX_SELECTION_SHARE", 1e9)
        yield


@pytest.fixture(scope="session")
def kit(request: pytest.FixtureRequest) -> Path:
    """The folder given by `--kit`."""
    path: Path | None = request.config.getoption("--kit")
    if path is None:
        pytest.skip("needs real weights and images: give their folder with --kit DIR")
    if not path.is_dir():
        pytest.skip(f"--kit {path} is not a folder")
    return path.resolve()
