"""Policies as text: what a person writes, and what is to be pasted."""

from __future__ import annotations

import dataclasses
from typing import Any

from convad_fx.compiler.policy import Policy
from convad_fx.errors import PolicyError

_NAMED = {
    "default": Policy(),
    "paper": Policy.paper(),
    "layer-masking": Policy.layer_masking(),
}


def policy_text(policy: Policy) -> str:
    """A policy in a few words: what differs from the default, as `parse_policy` reads it.

    >>> [policy_text(policy) for policy in (Policy(), Policy(tau=0.5, input="raw"), Policy.paper())]
    ['default', 'tau=0.5,input=raw', 'paper']
    """
    for name, known in _NAMED.items():
        if policy == known:
            return name
    return ",".join(f"{name}={value}" for name, value in _changed(policy).items())


def policy_options(policy: Policy) -> str:
    """The options of the command line that ask for it.

    >>> policy_options(Policy(tau=0.5, input="raw"))
    '--tau 0.5 --input raw'
    """
    return " ".join(f"--{name} {value}" for name, value in _changed(policy).items())


def policy_code(policy: Policy) -> str:
    """The call that makes it.

    >>> policy_code(Policy(tau=0.5, input="raw"))
    "Policy(tau=0.5, input='raw')"
    """
    return f"Policy({', '.join(f'{name}={value!r}' for name, value in _changed(policy).items())})"


def parse_policy(text: str) -> Policy:
    """The policy that a text names: `tau=0.5,input=strict`; or default, paper, layer-masking.

    >>> parse_policy("tau=0.5, input=strict")
    Policy(tau=0.5, attribution='positional', input='strict', pool='dilute', fill='zero')

    Raises:
        PolicyError: a field that does not exist or is there twice, or a value out of its range.
    """
    if text.strip() in _NAMED:
        return _NAMED[text.strip()]
    fields = tuple(field.name for field in dataclasses.fields(Policy))
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in fields or name in found:
            twice = " twice" if name in found else ""
            raise PolicyError(
                f"the policy {text!r} cannot be read: {part.strip()!r}{twice}",
                hint=f"write e.g. tau=0.5,input=strict, with {', '.join(fields)}; or one of "
                f"{', '.join(_NAMED)}",
            )
        found[name] = value
    if "tau" in found:
        try:
            found["tau"] = float(found["tau"])
        except ValueError as error:
            raise PolicyError(
                f"the policy {text!r} cannot be read: tau must be a number", hint="tau=0.5"
            ) from error
    return Policy(**found)


def _changed(policy: Policy) -> dict[str, float | str]:
    usual = Policy().to_dict()
    return {name: value for name, value in policy.to_dict().items() if value != usual[name]}
