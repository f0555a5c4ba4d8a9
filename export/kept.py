"""What the attempts at one engine have in common, computed by the first that needs it and kept for the others.

Where the gate says no, `precision.attempts` has another attempt: fewer 8-bit products, then float16. Keras's logits are
the same for all of them, and so are those of model.onnx, which is float32, what calibration found out about every
method and product, and the questions. On a CPU that is most of an attempt's time.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Kept:
    """Results by what they depend on. Nothing is ever dropped: it lives as long as a command."""

    def __init__(self) -> None:
        self._found: dict[Hashable, Any] = {}

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """make(), or what it gave for the same `what` before; what raises is made again."""
        if what not in self._found:
            self._found[what] = make()
        return self._found[what]
