"""What `--precision auto` tries, and whether 8-bit products are faster on the GPU that the engine is for."""

from typing import Any

from configs.errors import UserError
from export import engine
from export.config import OPTIONAL, ExportConfig
from export.quantisation import BASE
from model.config import BertConfig
from plugins import PLUGINS, formats
from serve import gpu


def candidates(config: ExportConfig) -> list[tuple[str, str]]:
    """(precision, why) in the order to try: what was asked for; with "auto" the 8-bit format that all GPUs of the plan
    multiply, float8 before int8, and float16 after it."""
    if config.precision != "auto":
        return [(config.precision, "asked for")]
    found, asked = gpu.find(), config.architectures()
    architectures = asked or (() if isinstance(found, str) else (found.architecture,))
    last = (BASE, "it runs on every GPU")
    if config.target == "none":
        return [(BASE, "no plan is built, and float8 and int8 are the plan's alone")]
    if not architectures:
        return [(BASE, f"no --arch says which GPU it is for, and there is none here: {found}")]
    if missing := set(PLUGINS) - set(OPTIONAL) - set(config.plugin_names()):
        return [(BASE, f"8-bit products need our plugins, and {', '.join(sorted(missing))} is left out")]
    oldest = min(architectures)
    for name in ("float8", "int8"):
        if oldest >= formats.FIRST[name]:
            return [(name, f"sm_{oldest} multiplies it at twice the rate of {BASE}"), last]
    return [(BASE, f"sm_{oldest} has no 8-bit products that our plugins use")]


def product_times(
    model: BertConfig, config: ExportConfig, gelu: str, plan: engine.Plan | None
) -> dict[str, tuple[float, float]] | str:
    """Product of a layer -> microseconds on this GPU in 16 and in 8 bits, at the plan's usual size; or why not.

    Cold weights, random numbers: `plugins/measure.py`. What a GELU or a layer norm saves by writing fewer bytes is not
    in it, which favours 16 bits.
    """
    found = gpu.find()
    if isinstance(found, str):
        return f"no GPU here: {found}"
    if plan is None or found.architecture not in plan.architectures:
        return f"this GPU, sm_{found.architecture}, is none of the plan's"
    profile = plan.profile
    tokens = (profile.tokens or profile.batch).usual * (profile.length.usual if profile.length else 1)
    try:
        return _times(model, config, gelu, tokens)
    except (RuntimeError, ValueError, UserError) as error:
        return f"it failed on {found.name}: {error}"


def _times(model: BertConfig, config: ExportConfig, gelu: str, tokens: int) -> dict[str, tuple[float, float]]:
    import numpy as np

    from export.graph import padded_head_size
    from export.quantisation import sizes
    from plugins import measure
    from plugins.device import Device
    from plugins.linear import cases
    from plugins.linear8 import cases as cases8

    channels = config.channels((90,))  # what it is called with was checked before
    times: dict[str, tuple[float, float]] = {}
    with Device() as device:
        for name, (inputs, outputs) in sizes(model, padded_head_size(model)).items():
            if inputs % formats.MULTIPLE or outputs % formats.MULTIPLE:
                times[name] = (0.0, 0.0)  # never asked for
                continue
            tanh = name == "ffn.in" and gelu == "tanh"
            before = cases.Case(name, "", (tokens,), inputs, outputs)
            after = cases8.Case(name, "", (tokens,), inputs, outputs, config.precision, channels)
            pair: list[tuple[str, Any]] = [("linear_gelu" if tanh else "linear", before)]
            pair.append(("linear8_gelu8" if tanh else "linear8", after))
            medians = [float(np.median(measure.time_case(device, op, case, BASE, {})[0])) for op, case in pair]
            times[name] = (medians[0], medians[1])
    return times
