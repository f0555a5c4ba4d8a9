"""Reading a JSON object that came from elsewhere: every field has a kind, and an error names the field and its cure.

    fields = Fields({"layout": "packed"}, "engine.json")
    layout = fields.choice("layout", ("packed", "padded"))

Nothing is converted: `2.0` is no whole number, `true` is no `1`. A getter's `most` bounds what a field may make us do.
"""

import re
from collections.abc import Sequence
from typing import Any

from configs.errors import UserError

ABSENT = object()
SHA256 = re.compile(r"[0-9a-f]{64}")


class Fields:
    """An object of JSON with typed getters; each raises UserError where the field is missing or of another kind."""

    def __init__(self, raw: Any, where: str, cure: str = "export the engine again") -> None:
        self.where, self.cure = where, cure
        if not isinstance(raw, dict):
            raise UserError(f"{where} is {_shown(raw)}; needed is an object of named fields; {cure}")
        self.raw: dict[str, Any] = raw

    def wrong(self, key: str, needed: str) -> UserError:
        """The error of a field, to be raised."""
        seen = f"is {_shown(self.raw[key])}" if key in self.raw else "is missing"
        return UserError(f"{self.where}: {key!r} {seen}; needed is {needed}; {self.cure}")

    def whole(self, key: str, least: int = 0, most: int = 2**31 - 1) -> int:
        value = self.raw.get(key)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: Any = ABSENT) -> Any:
        """A finite float; or `default` where the field is null or missing and a default is given."""
        value = self.raw.get(key)
        if value is None and default is not ABSENT:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise self.wrong(key, "a finite number")
        return float(value)

    def text(self, key: str, most: int = 1000) -> str:
        value = self.raw.get(key)
        if not isinstance(value, str) or len(value) > most:
            raise self.wrong(key, f"text of at most {most} characters")
        return value

    def choice(self, key: str, choices: Sequence[str]) -> str:
        value = self.raw.get(key)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(key, " or ".join(map(repr, choices)))
        return value

    def sha256(self, key: str) -> str:
        value = self.raw.get(key)
        if not isinstance(value, str) or not SHA256.fullmatch(value):
            raise self.wrong(key, "a SHA-256 in 64 hexadecimal digits")
        return value

    def texts(self, key: str, most: int = 1000) -> tuple[str, ...]:
        value = self.raw.get(key)
        if not isinstance(value, list) or len(value) > most or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, f"a list of at most {most} texts")
        return tuple(value)

    def wholes(self, key: str, most: int = 100) -> tuple[int, ...]:
        value = self.raw.get(key)
        if not isinstance(value, list) or len(value) > most or any(type(i) is not int or i < 0 for i in value):
            raise self.wrong(key, f"a list of at most {most} whole numbers")
        return tuple(value)

    def object(self, key: str, most: int = 10_000) -> "Fields":
        value = self.raw.get(key)
        if not isinstance(value, dict) or len(value) > most:
            raise self.wrong(key, f"an object of at most {most} fields")
        return Fields(value, f"{self.where}: {key}", self.cure)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
