"""What the cases of several operators have in common: of products, and of those that end in a layer norm."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ProductCase:
    """x rows + [inputs] times a weight, whose other axis the operator names."""

    name: str
    note: str
    rows: tuple[int, ...]  # the axes before K: [T] packed, [B, S] padded
    inputs: int  # K


@dataclass(frozen=True)
class NormCase:
    """s leading + [width], some with a second output of 8 bits."""

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
