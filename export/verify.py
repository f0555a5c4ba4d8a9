"""The gate: does the engine answer what the checkpoint answers? On real windows, against Keras in float32.

First model.onnx on ONNX Runtime, which is the reference of every other graph; then the plan, on the GPU that it is for.
On a machine without one the plan is not run, and engine.json says so. A runtime beyond the tolerance fails with the
name of the first layer that differs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from export import runners
from export.checkpoint import Checkpoint
from export.comparison import Questions, Tolerance, compare, table, worst
from export.first_difference import ROUNDING, Runner, find
from export.kept import Kept
from export.quantisation import FORMATS
from serve import gpu
from serve.manifest import MODEL
from serve.packed import Packed
from serve.session import Session

LOOKED_AT = 4  # windows in which the first layer that differs is searched
HALF_WINDOWS = 32  # windows that the float16 graph computes on a CPU
Say = Callable[[str], None]


class GateError(UserError):
    """An engine that is not the checkpoint; `report` is what was measured."""

    def __init__(self, message: str, report: dict[str, Any]):
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class Gate:
    """What the gate needs to know of an engine folder that is about to be put in its place."""

    folder: Path
    checkpoint: Checkpoint
    questions: Questions
    precision: str
    layout: str
    tolerances: dict[str, Tolerance]  # by precision of what runs
    graph: Path  # the plan's source
    architectures: tuple[int, ...] | None  # of the plan; None without one
    graph_is_whole: bool  # no function's body was left out of model.<precision>.onnx
    plan_runner: Callable[[Packed], Runner]  # of a plan with marked outputs, built when it is asked for outputs
    estimate: Path | None = None  # an 8-bit engine's graph with float32 for all that is not 8 bits wide
    kept: Kept = field(default_factory=Kept)  # of the attempts before this one
    _measured: set[str] = field(default_factory=set)  # names of what a comparison reports

    def run(self, say: Say) -> dict[str, Any]:
        """Compare; returns engine.json's "verified". Raises: GateError with the first layer that differs."""
        keras = self.kept.once("keras", lambda: runners.Keras(self.checkpoint))
        reference = self.kept.once("logits of Keras", lambda: keras.logits(self.questions.features))
        report: dict[str, Any] = {
            "dev": self.questions.dataset.source,
            "questions": len(self.questions.dataset.examples),
            "windows": len(self.questions.features),
        }
        model = self.folder / MODEL
        with Session.open(self.folder, "onnxruntime", ["CPUExecutionProvider"]) as session:
            self._judge(
                session, reference, report, "float32", say, lambda batch: find(
                    model, runners.onnx_runner(model, batch, self.layout), keras.ends(batch), ROUNDING["float32"],
                    inside=False,
                ),
            )  # fmt: skip
        if self.estimate is not None:
            self._estimate(reference, report, say)
        if self.architectures is None:
            return report
        if reason := cannot_run(self.architectures):
            report["plan"] = f"not run: {reason}"
            say(f"gate: the plan itself was not run ({reason})")
            if self.precision in ("float16", *FORMATS) and self.graph_is_whole:
                self._half(reference, report, say)
            return report
        report["onnxruntime"] = {name: report[name] for name in report if name in {"why", *self._measured}}
        with Session.open(self.folder, "tensorrt") as session:
            self._judge(
                session, reference, report, self.precision, say, lambda batch: find(
                    self.graph, self.plan_runner(batch), runners.onnx_runner(model, batch, self.layout),
                    ROUNDING[self.precision],
                ),
            )  # fmt: skip
        return report

    def _judge(self, session, reference, report, precision, say, search) -> None:
        def compute():
            return runners.session_logits(session, self.questions.features, session.runtime)

        whole = tuple(file.sha256 for name, file in session.manifest.files.items() if name.startswith(MODEL))
        ours = self.kept.once(whole, compute) if session.runtime == "onnxruntime" else compute()
        result = compare(self.questions, ours, reference)
        self._measured.update(result.report())
        report |= {"runtime": session.runtime, "why": session.why} | result.report()
        say(f"gate: {session.why}")
        say(table(result, len(self.questions.dataset.examples), len(self.questions.features)))
        if complaints := result.complaints(self.tolerances[precision]):
            where = search(Packed.windows(self.questions.features, worst(ours, reference, LOOKED_AT)))
            raise GateError(
                f"{session.runtime} does not answer what the checkpoint answers: {'; '.join(complaints)}; {where}",
                report | {"failed": complaints, "first_difference": where},
            )

    def _estimate(self, reference, report, say) -> None:
        """What the 8-bit products do to the answers, by ONNX Runtime on the CPU: everywhere, before a plan is run."""
        assert self.estimate is not None
        file = runners.OnnxFile(self.estimate, self.layout)
        ours = file.logits(self.questions.features, f"{self.precision} on the CPU")
        result = compare(self.questions, ours, reference)
        report[f"{self.precision}_on_cpu"] = result.report()
        say(f"gate: {self.precision} products on ONNX Runtime, all else float32")
        say(table(result, len(self.questions.dataset.examples), len(self.questions.features)))
        if complaints := result.complaints(self.tolerances[self.precision]):
            batch = Packed.windows(self.questions.features, worst(ours, reference, LOOKED_AT))
            paths = (self.estimate, self.folder / MODEL)
            eight, whole = (runners.onnx_runner(path, batch, self.layout) for path in paths)
            where = find(self.estimate, eight, whole, ROUNDING[self.precision])
            raise GateError(
                f"{self.precision} products do not answer what the checkpoint answers: {'; '.join(complaints)}; "
                f"{where}. A smaller --quantisation-error leaves more of them in float16",
                report | {"failed": complaints, "first_difference": where},
            )

    def _half(self, reference, report, say) -> None:
        """The plan's graph with its float16 on ONNX Runtime's CPU: slow, but what overflows on a GPU overflows here."""
        features, model = self.questions.features, self.folder / MODEL
        rows = np.unique(np.linspace(0, len(features) - 1, HALF_WINDOWS).astype(int))
        file = runners.OnnxFile(self.graph, self.layout)
        found = [file.run(Packed.windows(features, rows[index : index + 1])) for index in range(len(rows))]
        differences = [
            float(np.max([np.abs(ours.reshape(-1) - reference[side][row].reshape(-1)).max()  # NaN stays
                          for side, ours in enumerate(outputs)]))
            for row, outputs in zip(rows, found, strict=True)
        ]
        index = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
        largest = differences[index]
        report["float16_on_cpu"] = {"windows": len(rows), "largest_logit_difference": largest}
        say(f"gate: {self.graph.name} on ONNX Runtime, {len(rows)} windows: largest logit difference {largest:.3g}")
        if not largest <= self.tolerances[self.precision].logit:
            batch = Packed.windows(features, rows[index : index + 1])
            half, whole = (runners.onnx_runner(path, batch, self.layout) for path in (self.graph, model))
            where = find(self.graph, half, whole, ROUNDING[self.precision])
            raise GateError(
                f"{self.graph.name} does not compute what the checkpoint computes: a logit differs by {largest:.3g} "
                f"(tolerance {self.tolerances[self.precision].logit:g}); {where}. --precision bfloat16 has a wider "
                "range",
                report | {"failed": ["float16 graph"], "first_difference": where},
            )


def cannot_run(architectures: tuple[int, ...]) -> str:
    """Why this machine is none of those that a plan is for; "" where it is one, and has to run it then."""
    found = gpu.find()
    if isinstance(found, str):
        return f"no GPU here: {found}"
    if found.architecture not in architectures:
        return f"it is for sm_{', sm_'.join(map(str, architectures))}, here is sm_{found.architecture}"
    return ""
