"""The policies that `tune` tries, and policies as text, options and code."""

from __future__ import annotations

import dataclasses
from typing import Any

from convad_fx.compiler.policy import Policy
from convad_fx.errors import PolicyError

#: The default candidates: few, since the best of many leads by chance.
FEW: tuple[Policy, ...] = (
    Policy(),
    Policy(tau=0.3),
    Policy(tau=0.5),
    Policy(tau=0.7),
    Policy(input="strict"),
    Policy(tau=0.5, input="strict"),
    Policy(tau=0.5, input="raw"),
    Policy(attribution="receptive"),
    Policy(tau=0.5, attribution="receptive"),
    Policy.paper(),
    Policy(pool="renormalize"),
)

#: All combinations of tau, attribution, input and pool.
FULL: tuple[Policy, ...] = tuple(
    Policy(tau, attribution, read, pool)
    for attribution in ("positional", "receptive")
    for read in ("gate", "raw", "strict")
    for pool in ("dilute", "renormalize")
    for tau in (0.0, 0.1, 0.3, 0.5, 0.7)
)

_NAMED = {
    "default": Policy(),
    "paper": Policy.paper(),
    "layer-masking": Policy.layer_masking(),
}


def policy_text(policy: Policy) -> str:
    """The fields that differ from the default, as `parse_policy` reads them.

    >>> [policy_text(policy) for policy in (Policy(), Policy(tau=0.5, input="raw"), Policy.paper())]
    ['default', 'tau=0.5,input=raw', 'paper']
    """
    for name, known in _NAMED.items():
        if policy == known:
            return name
    return ",".join(f"{name}={value}" for name, value in _changed(policy).items())


def policy_options(policy: Policy) -> str:
    """The command-line options that select a policy.

    >>> policy_options(Policy(tau=0.5, input="raw"))
    '--tau 0.5 --input raw'
    """
    return " ".join(f"--{name} {value}" for name, value in _changed(policy).items())


def policy_code(policy: Policy) -> str:
    """The Python expression of a policy.

    >>> policy_code(Policy(tau=0.5, input="raw"))
    "Policy(tau=0.5, input='raw')"
    """
    return f"Policy({', '.join(f'{name}={value!r}' for name, value in _changed(policy).items())})"


def parse_policy(text: str) -> Policy:
    """The policy that a text names: `tau=0.5,input=strict`; or default, paper, layer-masking.

    >>> parse_policy("tau=0.5, input=strict")
    Policy(tau=0.5, attribution='positional', input='strict', pool='dilute', fill='zero')

    Raises:
        PolicyError: an unknown or repeated field, or a value out of its range.
    """
    if text.strip() in _NAMED:
        return _NAMED[text.strip()]
    fields = tuple(field.name for field in dataclasses.fields(Policy))
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in fields or name in values:
            twice = " twice" if name in values else ""
            raise PolicyError(
                f"the policy {text!r} cannot be read: {part.strip()!r}{twice}",
                hint=f"write e.g. tau=0.5,input=strict, with {', '.join(fields)}; or one of "
                f"{', '.join(_NAMED)}",
            )
        values[name] = value
    if "tau" in values:
        try:
            values["tau"] = float(values["tau"])
        except ValueError as error:
            raise PolicyError(
                f"the policy {text!r} cannot be read: tau must be a number", hint="write tau=0.5"
            ) from error
    return Policy(**values)


def _changed(policy: Policy) -> dict[str, float | str]:
    default = Policy().to_dict()
    return {name: value for name, value in policy.to_dict().items() if value != default[name]}
