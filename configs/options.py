"""Settings of a command: a dataclass says what there is, a recipe file and flags say what this run takes.

    @dataclass(frozen=True)
    class TrainConfig:
        \"\"\"Fine-tune a pre-trained encoder.\"\"\"
        data: str = setting(required=True, help="training questions: a SQuAD .json or .json.gz, or tfds:squad")
        lr: float = setting(3e-5, help="peak learning rate; usually 2e-5 to 5e-5", above=0)
        amp: str | None = setting(None, bare="auto", choices=("auto", "float16"), help="mixed precision")
        jit: bool = setting(False, help="compile the step with XLA")

`parse` fills it: the defaults above, then `--config NAME|FILE` (TOML, keys are the field names), then flags. A value
passes the same checks whatever its source. Parsing is simple-parsing's, reached through etils' eapp; this file turns
each complaint into one sentence, and flags.py says what our flags look like.
"""

import argparse
import dataclasses
import inspect
import math
import tomllib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import simple_parsing
from absl import app, flags
from etils import eapp

from configs import flags as our
from configs.errors import UsageError

RECIPES = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of a setting besides its name, type and default."""

    help: str
    required: bool = False
    choices: tuple = ()
    bare: Any = None
    off: Any = None
    above: float | None = None
    least: float | None = None
    most: float | None = None
    metavar: str | None = None


def setting(
    default: Any = None,
    *,
    help: str,
    required: bool = False,
    choices: Iterable = (),
    bare: Any = None,
    off: Any = None,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    metavar: str | None = None,
) -> Any:
    """A dataclass field that is also a flag and a recipe key.

    help      what it is, its unit and its usual range: the manual's line
    required  no default; some source must give it
    choices   the only values allowed
    bare      what the flag without a value means: `--amp` is `--amp auto`. There is a `--no-amp` then, too
    off       what that negative form, or `amp = false` in a recipe, means
    above     smallest value excluded; least, most: smallest and largest value allowed
    """
    about = Setting(help, required, tuple(choices), bare, off, above, least, most, metavar)
    if isinstance(default, list):
        default = tuple(default)
    return dataclasses.field(default=default, metadata={"setting": about})


def parse(config_class: type, argv: list[str], command: str) -> Any:
    """The settings of one run. `argv` is without the program's name; --help leaves by SystemExit(0)."""
    kinds, abouts = typing.get_type_hints(config_class), _abouts(config_class)
    program = f"python -m {command}" if "." in command else f"python {command}.py"
    recipe, given = _split_config(argv)
    values = read_recipe(recipe, config_class) if recipe is not None else {}
    form = _form(config_class, kinds, values)
    parser = eapp.make_flags_parser(
        form,
        prog=program,
        description=inspect.cleandoc(config_class.__doc__ or command),
        epilog="Defaults, then --config, then flags: the later wins. Dashes and underscores in names are the same.",
        formatter_class=our.Manual,
        add_option_string_dash_variants=simple_parsing.wrappers.DashVariant.DASH,
        allow_abbrev=False,  # a flag that is new tomorrow must not change what `--ep` means today
        exit_on_error=False,
    )
    names = {spelling for name in abouts for spelling in (our.dash(name), f"no-{our.dash(name)}")} | {"config"}
    try:
        parsed = parser([command, *(our.dashed(token, names) for token in given)])
    except argparse.ArgumentError as error:
        raise UsageError(f"{error.argument_name or ''} {error.message}".strip()) from error
    except flags.UnrecognizedFlagError as error:
        near = our.nearest(our.dash(error.flagname), [*sorted(names), *flags.FLAGS], prefix="--")
        seen = next((token for token in given if token.lstrip("-").partition("=")[0] == error.flagname), error.flagname)
        raise UsageError(f"unknown flag {seen}{near}; `{program} --help` lists all") from error
    except flags.Error as error:
        raise UsageError(str(error)) from error
    if parsed.stray:
        raise UsageError(f"{' '.join(parsed.stray)!r} belongs to no flag; every setting is given as --name value")
    chosen = {}
    for name, about in abouts.items():
        chosen[name] = check(f"--{our.dash(name)}", getattr(parsed, name), kinds[name], about)
        if about.required and chosen[name] is None:
            raise UsageError(f"--{our.dash(name)} is needed: {about.help}")
    try:
        return config_class(**chosen)
    except ValueError as error:  # a check across settings in __post_init__
        raise UsageError(str(error)) from error


def read_recipe(recipe: str, config_class: type) -> dict[str, Any]:
    """The values of a recipe file, checked against the settings that it sets."""
    path = _recipe_path(recipe)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path} is no recipe ({error}); a recipe is TOML: lines of name = value") from error
    kinds, abouts = typing.get_type_hints(config_class), _abouts(config_class)
    values = {}
    for name, value in table.items():
        if name not in abouts:
            raise UsageError(f"{path}: no setting is called {name}{our.nearest(name, abouts)}")
        values[name] = check(f"{path}: {name}", value, kinds[name], abouts[name])
    return values


def check(where: str, value: Any, kind: Any, about: Setting) -> Any:
    """The value in the setting's type, or an error that says what was seen and what is allowed."""
    base, optional, many = _anatomy(kind)
    if about.bare is not None and isinstance(value, bool):  # a recipe's `amp = true` is the flag's bare `--amp`
        value = about.bare if value else about.off
    if value is None and (optional or about.required):
        return None
    if many:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where} takes a list of {our.WORDS[base]}s; got {value!r}")
        return tuple(check(where, item, base, about) for item in value)
    if base is float and type(value) is int:
        value = float(value)
    if type(value) is not base:  # exactly: True is not 1, and 2.0 layers are not 2
        raise UsageError(f"{where} takes {our.WORDS[base]}; got {value!r}")
    if about.choices and value not in about.choices:
        near = our.nearest(str(value), about.choices)
        raise UsageError(f"{where} takes {our.listed(about.choices)}; got {value!r}{near}")
    number: Any = value
    if base is float and not math.isfinite(number):
        raise UsageError(f"{where} takes a finite number; got {value}")
    if about.above is not None and number <= about.above:
        raise UsageError(f"{where} must be more than {about.above}; got {value}")
    if about.least is not None and number < about.least:
        raise UsageError(f"{where} must be at least {about.least}; got {value}")
    if about.most is not None and number > about.most:
        raise UsageError(f"{where} must be at most {about.most}; got {value}")
    return value


def _recipe_path(recipe: str) -> Path:
    """`--config quickstart` is configs/quickstart.toml wherever the command is run from; anything else is a file."""
    tried = [Path(recipe), Path(recipe + ".toml")]
    if "/" not in recipe:
        tried = [RECIPES / recipe, RECIPES / f"{recipe}.toml", *tried]
    for path in tried:
        if path.is_file():
            return path
    known = sorted(path.stem for path in RECIPES.glob("*.toml"))
    near = our.nearest(Path(recipe).name.removesuffix(".toml"), known)
    raise UsageError(f"no recipe {recipe!r}{near}; give a file, or a name in configs/: {', '.join(known)}")


def _split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """The recipe named by --config, which must be read before the other flags, and those flags."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config")
    try:
        found, rest = first.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError("--config takes a recipe's name or a file, as in --config quickstart") from error
    return found.config, rest


def _abouts(config_class: type) -> dict[str, Setting]:
    """Each field's Setting. A field declared in another way is a mistake in our code, as are the names refused here."""
    app.define_help_flags()
    abouts = {}
    for field in dataclasses.fields(config_class):
        where = f"{config_class.__name__}.{field.name}"
        if "setting" not in field.metadata:
            raise TypeError(f"{where} is not declared with setting(...), so it has no help")
        if field.name in flags.FLAGS or field.name in ("config", "stray") or field.name.startswith("no_"):
            raise TypeError(f"{where}: the name --{our.dash(field.name)} is absl's or ours already; choose another")
        abouts[field.name] = field.metadata["setting"]
    return abouts


def _anatomy(kind: Any) -> tuple[type, bool, bool]:
    """A type hint as (bool | int | float | str, may be None, is a tuple of them)."""
    arms = list(typing.get_args(kind)) if isinstance(kind, types.UnionType) else [kind]
    optional = types.NoneType in arms
    arms = [arm for arm in arms if arm is not types.NoneType]
    base: Any = arms[0] if len(arms) == 1 else None
    many = False
    if typing.get_origin(base) is tuple and typing.get_args(base)[1:] == (...,):
        base, many = typing.get_args(base)[0], True
    if base not in our.WORDS:
        raise TypeError(f"settings are bool, int, float, str, `T | None` or tuple[T, ...]; not {kind}")
    return base, optional, many


def _form(config_class: type, kinds: dict, values: dict[str, Any]) -> type:
    """A dataclass of the same fields for simple-parsing to fill: the recipe's values are its defaults.

    It is made anew, not derived, so that a __post_init__ sees the settings once and finished; and it names each
    field's argparse arguments, because those simple-parsing would choose read a bare `--limit` as None.
    """
    recipe = {"default": None, "nargs": None, "metavar": "NAME"}
    fields: list[tuple[str, Any, Any]] = [
        ("config", Any, simple_parsing.field(**recipe, help="a recipe in configs/ by name, or a TOML file"))
    ]
    for field in dataclasses.fields(config_class):
        base, _, many = _anatomy(kinds[field.name])
        default = values.get(field.name, field.default)
        extra = our.arguments(field.metadata["setting"], base, many, default)
        # Typed Any: how text is read is said in `extra`, and what the value must be is checked once, by `check`.
        fields.append((field.name, Any, simple_parsing.field(default=default, **extra)))
    stray = {"positional": True, "nargs": "*", "help": argparse.SUPPRESS}  # etils would drop these without a word
    fields.append(("stray", list[str], simple_parsing.field(default_factory=list, **stray)))
    form = dataclasses.make_dataclass("settings", fields)
    form.__doc__ = None  # the signature that dataclasses writes there is no text for a manual
    return form
