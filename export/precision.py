"""What is tried until the gate is passed, and whether 8-bit products are faster on the GPU that the engine is for."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from configs.errors import UserError
from export import engine
from export.config import OPTIONAL, ExportConfig
from export.quantisation import BASE, FORMATS
from model.config import BertConfig
from plugins import PLUGINS, formats
from serve import gpu

# Of the logits, allowed to 8-bit products: how many answers that changes depends on how close a model's answers are.
ERRORS = (0.025, 0.0125, 0.00625)


def attempts(config: ExportConfig) -> list[tuple[ExportConfig, str]]:
    """(settings with one precision and one error, why) in the order to try: the candidates, each 8-bit one with ever
    smaller errors, so fewer 8-bit products, unless --quantisation-error says which."""
    found = []
    for name, why in candidates(config):
        several = name in FORMATS and config.quantisation_error is None
        for error in ERRORS if several else (config.quantisation_error or ERRORS[0],):
            said = f"{why}, {100 * error:g} % of error allowed" if name in FORMATS else why
            found.append((replace(config, precision=name, quantisation_error=error), said))
    return found


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

    Cold weights, random numbers: `plugins/measure.py`. Where the graph joins a product with its layer norm, so is this.
    What a GELU or a norm of its own saves by writing fewer bytes is not in it, which favours 16 bits.
    """
    found = gpu.find()
    if isinstance(found, str):
        return f"no GPU here: {found}"
    if plan is None or found.architecture not in plan.architectures:
        return f"this GPU, sm_{found.architecture}, is none of the plan's"
    profile = plan.profile
    tokens = (profile.tokens or profile.batch).usual * (profile.length.usual if profile.length else 1)
    try:
        return _times(model, config, gelu, tokens, plan.plugins)
    except (RuntimeError, ValueError, UserError) as error:
        return f"it failed on {found.name}: {error}"


def _times(
    model: BertConfig, config: ExportConfig, gelu: str, tokens: int, names: Collection[str]
) -> dict[str, tuple[float, float]]:
    import numpy as np

    from export.graph import padded_head_size
    from export.quantisation import sizes
    from plugins import measure
    from plugins.device import Device

    channels = config.channels((90,))  # what it is called with was checked before
    times: dict[str, tuple[float, float]] = {}
    with Device() as device:
        for name, (inputs, outputs) in sizes(model, padded_head_size(model)).items():
            if inputs % formats.MULTIPLE or outputs % formats.MULTIPLE:
                times[name] = (0.0, 0.0)  # never asked for
                continue
            pair = compared(name, (tokens, inputs, outputs), config.precision, channels, gelu, names)
            medians = [float(np.median(measure.time_case(device, op, case, BASE, {})[0])) for op, case in pair]
            times[name] = (medians[0], medians[1])
    return times


def compared(
    product: str, sizes: tuple[int, int, int], format: str, channels: bool, gelu: str, names: Collection[str]
) -> list[tuple[str, Any]]:
    """(operator, its case) in 16 and in 8 bits that stand for a product ("ffn.in") in a graph with these plugins.

    sizes: tokens, inputs, outputs.
    """
    from export.graph import fuses
    from plugins.linear.cases import Case
    from plugins.linear8.cases import Case as Case8
    from plugins.linear_skip_layer_norm.cases import Case as CaseOfNorm

    tokens, inputs, outputs = sizes
    given = (product, "", (tokens,), inputs, outputs)
    if product.endswith("out") and fuses(names) and format == "float8":
        cases = [CaseOfNorm(*given), CaseOfNorm(*given, eight=True, channels=channels)]
        return [(case.op, case) for case in cases]
    if product == "ffn.in" and (gelu == "tanh" or fuses(names)):
        form = "tanh" if gelu == "tanh" else "none"
        return [("linear_gelu", Case(*given, form)), ("linear8_gelu8", Case8(*given, format, channels, form))]
    return [("linear", Case(*given)), ("linear8", Case8(*given, format, channels))]
