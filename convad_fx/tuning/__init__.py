"""Which policy suits a network and its pictures? Measured on a handful of them, with its doubt.

`convad_fx.tune` is the function; docs/tune.md says how to read what it finds.
"""

from convad_fx.tuning.choice import CRITERIA, Explained, Measured, Trial, Tuning
from convad_fx.tuning.measure import FEW, FULL, tune
from convad_fx.tuning.spelling import parse_policy, policy_code, policy_options, policy_text

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
