"""How our flags look and read: `--batch-size 32`, `--jit`, `--no-jit`, `--amp [WHAT]`, and the manual of --help.

Four habits of the libraries below us are mended here and in options.py; each would lose a user's wish without a word:
a plain optional text reads a bare `--amp` as None; only `--batch_size` and `--nojit` would be known; an unknown flag
ends in a traceback; a word that belongs to no flag is dropped.
"""

import argparse
import difflib
from collections.abc import Callable, Iterable
from typing import Any

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false"}
TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def dash(name: str) -> str:
    """A field's name as a flag spells it: batch_size is --batch-size."""
    return name.replace("_", "-")


def dashed(token: str, names: Iterable[str]) -> str:
    """`--batch_size=8` as `--batch-size=8` if that is one of our flags; anything else, absl's flags too, as it is."""
    head, equals, tail = token.partition("=")
    if head.startswith("--") and dash(head[2:]) in names:
        return "--" + dash(head[2:]) + equals + tail
    return token


def listed(words: Iterable[Any]) -> str:
    """`a, b or c`."""
    *most, last = [str(word) for word in words]
    return f"{', '.join(most)} or {last}" if most else last


def nearest(seen: str, known: Iterable[Any], prefix: str = "") -> str:
    """` (did you mean X?)`, or nothing when nothing is near."""
    near = difflib.get_close_matches(seen, [str(name) for name in known], n=1)
    return f" (did you mean {prefix}{near[0]}?)" if near else ""


def reader(base: type) -> Callable[[str], Any]:
    """Text to a value of the type; what it says on bad text follows the flag's name in the error."""

    def read(text: str) -> Any:
        try:
            return TRUTH[text.lower()] if base is bool else base(text)
        except (ValueError, KeyError):
            raise argparse.ArgumentTypeError(f"takes {WORDS[base]}; got {text!r}") from None

    return read


class Switch(argparse.Action):
    """`--x`, `--x VALUE` and `--no-x` in one: the bare flag means `bare`, the negated one `off`."""

    def __init__(self, option_strings, dest, bare=True, off=False, nargs="?", **kept):
        self.bare, self.off = bare, off
        self.negatives = ["--no-" + option[2:] for option in option_strings if option.startswith("--")]
        # argparse's own `const` stays None, so that --no-x can tell "no value given" from a value.
        super().__init__([*option_strings, *self.negatives], dest, nargs=nargs, **kept)

    def __call__(self, parser, namespace, values, option_string=None):
        if option_string in self.negatives:
            if values is not None:
                raise argparse.ArgumentError(None, f"{option_string} takes no value")
            setattr(namespace, self.dest, self.off)
        else:
            setattr(namespace, self.dest, self.bare if values is None else values)


def arguments(about: Any, base: type, many: bool, default: Any) -> dict[str, Any]:
    """The argparse arguments of a setting; `about` is its options.Setting."""
    extra = {
        "help": _help_line(about, default).replace("%", "%%"),
        "type": reader(base),
        "metavar": about.metavar or METAVARS[base],
    }
    if base is bool:
        return extra | {"action": Switch, "bare": True, "off": False}
    if about.bare is not None:
        return extra | {"action": Switch, "bare": about.bare, "off": about.off}
    return extra | {"nargs": "*" if many else None}


def _help_line(about: Any, default: Any) -> str:
    notes = []
    if about.choices:
        notes.append(listed(about.choices))
    if about.bare is not None:
        notes.append(f"alone: {about.bare}")
    for words, bound in [("above", about.above), ("at least", about.least), ("at most", about.most)]:
        if bound is not None:
            notes.append(f"{words} {bound}")
    if about.required and default is None:
        notes.append("needed")
    else:
        notes.append(f"default: {_shown(default)}")
    return f"{about.help} ({'; '.join(notes)})"


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    text = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return "none" if default is None or not text else text


class Manual(argparse.RawDescriptionHelpFormatter):
    """The layout of --help: a line per flag in its dashed spelling, then what it does with its default."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=110)

    def start_section(self, heading):
        super().start_section("settings" if heading and heading.endswith("['args']") else heading)

    def add_text(self, text):
        if text and text.strip():  # simple-parsing gives its group an empty one
            super().add_text(text)

    def add_usage(self, usage, actions, groups, prefix=None):
        super().add_usage("%(prog)s [--config NAME] [--SETTING VALUE ...]", actions, groups, prefix)

    def _format_action_invocation(self, action):
        flag = ", ".join(option for option in action.option_strings if not option.startswith("--no-"))
        if isinstance(action, Switch):
            value = "" if action.bare is True else f" [{action.metavar}]"
            return f"{flag}{value}, {', '.join(action.negatives)}"
        if action.nargs == 0 or not action.option_strings:
            return super()._format_action_invocation(action)
        return f"{flag} {action.metavar}" + (" ..." if action.nargs == "*" else "")
