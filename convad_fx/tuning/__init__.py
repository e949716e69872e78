"""`tune`: which policy suits a network and its images? docs/tune.md explains its result."""

from convad_fx.tuning.policies import (
    FEW,
    FULL,
    parse_policy,
    policy_code,
    policy_options,
    policy_text,
)
from convad_fx.tuning.result import CRITERIA, Explained, Measured, Trial, Tuning
from convad_fx.tuning.tuner import tune

__all__ = [
    "CRITERIA",
    "FEW",
    "FULL",
    "Explained",
    "Measured",
    "Trial",
    "Tuning",
    "parse_policy",
    "policy_code",
    "policy_options",
    "policy_text",
    "tune",
]
