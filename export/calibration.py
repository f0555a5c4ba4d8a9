"""From real windows to a `Quantisation`: which scales, and which products are better left in 16 bits.

    1. ranges of every product's x on half of the windows (`ranges.py`)
    2. on the other half, the logits' error with the scales of each method, all products in 8 bits: the best method
    3. there, too, the error of each product alone; those that make most error for their arithmetic go back to 16 bits
       until the whole is within --quantisation-error

The windows are training questions: scales that were fitted to the questions of the gate would flatter it. An error is
the root mean square of the logits' differences, relative to how the logits vary within their windows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from configs.errors import UserError
from export import ranges
from export.checkpoint import Checkpoint
from export.comparison import Logits, Questions
from export.kept import Kept
from export.quantisation import BASE, Quantisation, kind, names, sizes, width_complaint
from export.simulation import Simulation

ALONE = 16  # windows on which each product is tried alone
FEWEST = 8  # windows
Say = Callable[[str], None]
Times = Mapping[str, tuple[float, float]]  # product of a layer, as "ffn.in" -> microseconds in 16 and in 8 bits


@dataclass(frozen=True)
class Trials:
    """What is known before any error is allowed, and so the same for all of them: steps 1 to 3 without the choice."""

    decisions: dict[str, dict[str, Any]]  # product -> what `_before` says, its scale, its error_alone if asked
    scales: dict[str, float]  # of the products that may be 8 bits wide, by the best method
    method: str
    methods: dict[str, float]  # method -> error
    reference: Logits  # of the windows to choose by, nothing rounded


@dataclass(frozen=True)
class Result:
    """A choice, and the decision table and all figures that led to it: engine.json's "quantisation"."""

    quantisation: Quantisation
    report: dict[str, Any]


def source(said: str | None, checkpoint: Checkpoint) -> tuple[str, str]:
    """(data, why) to calibrate with: what was said, or what the run was trained with, or the built-in questions."""
    if said is not None:
        return said, "asked for"
    trained = checkpoint.info.made.get("settings", {}).get("data")
    if isinstance(trained, str):
        if trained.startswith("builtin:") or Path(trained).is_file():
            return trained, "what the run was trained with"
        why = f"the run was trained with {trained}, which is not to be had"
    else:
        why = "the run does not say what it was trained with"
    if checkpoint.head.builtin is None:
        raise UserError(f"{why}; 8-bit products need examples to calibrate with: name them with --calibrate")
    return "builtin:train", f"{why}; better say --calibrate"


def read(checkpoint: Checkpoint, data: str, limit: int) -> Questions:
    """Evenly spread questions of the data. Raises: UserError where they are too few."""
    # Built-in questions are made one by one, all much alike; of a file, all are read and every so-manieth is taken.
    dataset = checkpoint.head.read(data, split="train", limit=4 * limit if data.startswith("builtin:") else None)
    step = max(1, len(dataset.examples) // limit)
    found = Questions.of(checkpoint, replace(dataset, examples=dataset.examples[::step][:limit]))
    if len(found.features) < 2 * FEWEST:
        raise UserError(
            f"{data} gives {len(found.features)} windows to calibrate with; needed are {2 * FEWEST}: half for the "
            "ranges, half to choose by"
        )
    return found


def calibrate(
    model: Path, checkpoint: Checkpoint, questions: Questions, *, format: str, channels: bool, layout: str, gelu: str,
    padded_head: int, error: float, times: Times | str, say: Say, kept: Kept | None = None,
) -> Result:  # fmt: skip
    """Choose.

    Args:
        model: model.onnx, float32, in `layout`.
        questions: training questions.
        format: "float8" or "int8".
        channels: a scale for each output of a weight, where the hardware can.
        error: the largest error allowed, as a share.
        times: of the products on the GPU that the engine is for; a text says why there are none.
        kept: of attempts at the same engine, which may differ in `error` alone.
    """
    features, config = questions.features, checkpoint.config
    rows = np.arange(len(features))
    fitted, held = rows[::2], rows[1::2]
    # cuBLASLt writes no float8 where a weight has many scales: linear8_gelu8 has one.
    single = frozenset(n for n in names(config) if format == "float8" and gelu == "tanh" and n.endswith("ffn.in"))
    simulation = Simulation(model, layout, format, channels, single)
    limit = error if error < 1.0 else math.inf  # nothing goes back then, so nothing is asked alone, which takes long

    def trials() -> Trials:
        found = ranges.measure(model, layout, features, fitted)
        decisions = _before(found, config, padded_head, times)
        return _try(simulation, found, decisions, features, held, format, limit < math.inf)

    tried = (kept or Kept()).once(("trials", format, limit < math.inf), trials)
    method, methods, scales = tried.method, tried.methods, tried.scales
    candidates, decisions = list(scales), {name: dict(item) for name, item in tried.decisions.items()}
    said = ", ".join(f"{name} {100 * value:.2f} %" for name, value in methods.items())
    say(f"calibration: {format}, {len(fitted)} windows for ranges, {len(held)} to choose by; error {said}: {method}")

    def whole(scales: dict[str, float]) -> float:
        return relative_error(simulation.logits(features, held, scales), tried.reference)

    left, reached = _within(limit, methods[method], scales, decisions, whole)
    for name in candidates:
        if name in left:
            decisions[name] |= {"precision": format, "why": _why(times, name)}
        else:
            alone_error = 100 * decisions[name]["error_alone"]
            why = f"alone it makes an error of {alone_error:.2f} %; without it the whole has {100 * reached:.2f} %"
            decisions[name] |= {"precision": BASE, "why": why}
    share = sum(decisions[name]["arithmetic"] for name in left)
    say(
        f"calibration: {len(left)} of {len(decisions)} products in {format}, {100 * share:.0f} % of their arithmetic; "
        f"error {100 * reached:.2f} % of {100 * error:g} % allowed"
    )
    if not left:
        say(f"calibration: so nothing of this engine is {format}: it computes what --precision {BASE} does")
    report = {
        "format": format, "calibrated_on": questions.dataset.source, "questions": len(questions.dataset.examples),
        "windows": {"ranges": len(fitted), "choice": len(held)}, "method": method, "errors": methods,
        "error": reached, "error_allowed": error, "arithmetic": share,
        "weight_scales": "channel" if channels else "tensor",
        "measured_here": times if isinstance(times, str) else {name: list(pair) for name, pair in times.items()},
        "products": decisions,
    }  # fmt: skip
    return Result(Quantisation(format, {name: scales[name] for name in left}, channels), report)


def _try(
    simulation: Simulation, found: Mapping[str, ranges.Range], decisions: dict[str, dict[str, Any]], features: Any,
    held: np.ndarray, format: str, alone: bool,
) -> Trials:  # fmt: skip
    """Every method on all products that may be 8 bits wide, on the windows `held`; and each product alone if asked."""
    candidates = [name for name, item in decisions.items() if item["precision"] != BASE]
    reference = simulation.logits(features, held, {})
    methods = {}
    for method in tqdm(ranges.METHODS, "calibrate", unit="method", leave=False):
        scales = {name: found[name].scale(method, format) for name in candidates}
        methods[method] = relative_error(simulation.logits(features, held, scales), reference)
    method = min(methods, key=lambda name: methods[name])
    scales = {name: float(found[name].scale(method, format)) for name in candidates}
    for name in candidates:
        decisions[name]["scale"] = scales[name]
    if alone:
        some = held[:: max(1, len(held) // ALONE)][:ALONE]
        unrounded = simulation.logits(features, some, {})
        for name in tqdm(candidates, "each product alone", unit="product", leave=False):
            one = {name: scales[name]}
            decisions[name]["error_alone"] = relative_error(simulation.logits(features, some, one), unrounded)
    return Trials(decisions, scales, method, methods, reference)


def _before(
    found: Mapping[str, ranges.Range], config, padded_head: int, times: Times | str
) -> dict[str, dict[str, Any]]:
    """Product -> what is known before anything is tried: precision BASE where it cannot be, or is not, faster.

    arithmetic: its share of all products' multiplications.
    """
    decisions: dict[str, dict[str, Any]] = {}
    weights = sizes(config, padded_head)
    whole = config.layers * sum(inputs * outputs for inputs, outputs in weights.values())
    for name in names(config):
        inputs, outputs = weights[kind(name)]
        about: dict[str, Any] = {"precision": "", "absmax": found[name].largest, "arithmetic": inputs * outputs / whole}
        if why := width_complaint(inputs, outputs):
            about |= {"precision": BASE, "why": why}
        elif not isinstance(times, str) and times[kind(name)][1] >= times[kind(name)][0]:
            about |= {"precision": BASE, "why": "not faster: " + _why(times, name)}
        decisions[name] = about
    return decisions


def _within(
    error: float, reached: float, scales: dict[str, float], decisions: dict, measure: Callable
) -> tuple[list[str], float]:
    """(the products that stay, the error with them); `reached` is that of all of them. Those that make most error for
    their arithmetic are taken out, as many as their errors alone predict to be needed, as often as it takes: the
    squares of the errors add up."""
    left = dict(scales)
    while reached > error and left:
        order = sorted(left, key=lambda name: -decisions[name]["error_alone"] ** 2 / decisions[name]["arithmetic"])
        squares = {name: decisions[name]["error_alone"] ** 2 for name in left}
        correction = reached**2 / max(sum(squares.values()), 1e-30)  # what was measured against what was predicted
        for name in order:
            del left[name], squares[name]
            if correction * sum(squares.values()) <= error**2:
                break
        reached = measure(left) if left else 0.0
    return list(left), reached


def _why(times: Times | str, name: str) -> str:
    if isinstance(times, str):
        return f"within the error; whether it is faster was not measured ({times})"
    before, after = times[kind(name)]
    return f"{after:.1f} us in place of {before:.1f}"


def relative_error(ours: Logits, reference: Logits) -> float:
    """Root mean square of the differences, over that of the reference around the mean of its window."""
    pairs = [
        (one.astype(np.float64), other.astype(np.float64)) for side, wanted in zip(ours, reference, strict=True)
        for one, other in zip(side, wanted, strict=True)
    ]  # fmt: skip
    lost = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    # Of a single number a window, only the windows vary.
    mean = np.mean([b.mean() for _, b in pairs]) if all(b.size == 1 for _, b in pairs) else None
    whole = sum(float(((b - (b.mean() if mean is None else mean)) ** 2).sum()) for _, b in pairs)
    return float(np.sqrt(lost / max(whole, 1e-30)))
