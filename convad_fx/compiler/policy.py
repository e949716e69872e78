"""The choices the paper leaves open, as one frozen value."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from convad_fx.errors import PolicyError

ATTRIBUTIONS = ("positional", "receptive")
INPUTS = ("gate", "raw", "strict")
POOLS = ("dilute", "renormalize")
FILLS = ("zero", "neighbour")


@dataclass(frozen=True, slots=True)
class Policy:
    """How activity propagates through the network (docs/meaning.md, "Policy").

    >>> Policy(tau=0.5)
    Policy(tau=0.5, attribution='positional', input='gate', pool='dilute', fill='zero')
    >>> Policy.paper().attribution
    'receptive'

    Args:
        tau: an output element is active iff more than this share of the elements it reads is;
            in [0, 1).
        attribution: "positional": windows that keep the grid keep the activity unchanged;
            "receptive": the share is taken over the window there too.
        input: "gate": the image is gated first; "raw": the first layer sees the whole image;
            "strict": gated, and the first window stays active only where it is kept whole.
        pool: "dilute": means divide by the full count; "renormalize": by the active count.
        fill: value that convolutions read for inactive elements: "zero", or "neighbour": the mean
            of the active elements around it, zero where there are none.

    Raises:
        PolicyError: a field out of its range, naming the range.
    """

    tau: float = 0.0
    attribution: str = "positional"
    input: str = "gate"
    pool: str = "dilute"
    fill: str = "zero"

    def __post_init__(self) -> None:
        if isinstance(self.tau, bool) or not isinstance(self.tau, int | float):
            raise PolicyError(f"tau must be a number, not {self.tau!r}")
        if not 0 <= self.tau < 1:
            raise PolicyError(
                f"tau must lie in [0, 1), not {self.tau}",
                hint="with tau = 1 not even a fully visible element would be active",
            )
        for field, allowed in (
            ("attribution", ATTRIBUTIONS),
            ("input", INPUTS),
            ("pool", POOLS),
            ("fill", FILLS),
        ):
            if (value := getattr(self, field)) not in allowed:
                raise PolicyError(f"{field} must be one of {', '.join(allowed)}, not {value!r}")

    @classmethod
    def paper(cls) -> Policy:
        """The literal reading of arXiv 2510.01038: mean-kernel attribution, raw input, tau 0."""
        return cls(tau=0.0, attribution="receptive", input="raw", pool="dilute")

    @classmethod
    def layer_masking(cls) -> Policy:
        """After arXiv 2211.14646: pooling divides by the active count, borders read neighbours."""
        return cls(pool="renormalize", fill="neighbour")

    def to_dict(self) -> dict[str, float | str]:
        """The fields by name, for JSON."""
        return asdict(self)
