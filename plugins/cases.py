"""What the cases of operators that end in a layer norm have in common, some with a second output of 8 bits."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NormCase:
    name: str
    note: str
    leading: tuple[int, ...]  # the axes before H: [T] packed, [B, S] padded
    width: int  # H
    epsilon: float = 1e-12
    format: str = ""  # of the second output; none: the operator without one
    inverse_scale: float = 100.0

    @property
    def attributes(self) -> dict[str, float | str]:
        own: dict[str, float | str] = {"epsilon": self.epsilon}
        return own | {"inverse_scale": self.inverse_scale, "format": self.format} if self.format else own
