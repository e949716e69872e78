"""Ranges of options, checked in one place and in one wording."""

from __future__ import annotations

from convad_fx.errors import PolicyError


def check_count(name: str, value: object, *, least: int, hint: str) -> None:
    """Refuses what is not a whole number of at least `least`.

    >>> check_count("seed", 1.5, least=0, hint="pass 0")
    Traceback (most recent call last):
    convad_fx.errors.PolicyError: seed must be a whole number of at least 0, not 1.5; pass 0
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PolicyError(
            f"{name} must be a whole number of at least {least}, not {value!r}", hint=hint
        )


def check_share(name: str, value: object, *, zero: bool, hint: str) -> None:
    """Refuses what is not a number in [0, 1], or in (0, 1] unless `zero` is allowed."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if number is None or not 0 <= number <= 1 or (number == 0 and not zero):  # NaN fails, too
        raise PolicyError(
            f"{name} must lie in {'[' if zero else '('}0, 1], not {value!r}", hint=hint
        )
