"""Settings of `export.py`; `python export.py --help` prints them."""

from dataclasses import dataclass

import plugins
from configs.errors import UsageError
from configs.flags import listed, nearest
from configs.options import setting
from export.comparison import Tolerance
from export.quantisation import BASE, FORMATS
from plugins import formats

# What is put down to rounding, against Keras in float32: largest difference of a logit, percent of answers that change.
LOGITS = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5, "float8": 4.0, "int8": 4.0}
ANSWERS = {"float32": 0.1, "float16": 1.0, "bfloat16": 5.0, "float8": 2.0, "int8": 2.0}
OPTIONAL = ("linear_skip_layer_norm",)  # plugins that an 8-bit graph can do without: it stands for two others
ANOTHER_GELU = 0.5  # largest difference of a logit where --gelu is not what the weights were trained with


@dataclass(frozen=True)
class GraphConfig:
    """What is written."""

    run: str = setting(
        required=True,
        help="run folder of train.py or distill.py, whose best weights are exported; with --task a Hugging Face folder",
    )
    task: str | None = setting(
        None,
        help="what published weights are for, as in train.py: embed, csv, glue/sst2 ...; of a run folder embed or "
        "encode, for its encoder alone",
    )
    out: str | None = setting(None, help="engine folder to write; must not exist unless --overwrite")
    hf: str | None = setting(None, help="folder to write for Hugging Face's transformers; alone or beside --out")
    triton: str | None = setting(None, help="model repository to write for NVIDIA Triton Inference Server; needs --out")
    overwrite: bool = setting(
        False, help="replace what is in --out, --hf and --triton, if it was written by this command"
    )
    precision: str = setting(
        "float16",
        choices=("float16", "bfloat16", "float32", "float8", "int8", "auto"),
        help="of the plan's activations and products; float8 (GPUs from 8.9 on) and int8 (from 8.0 on) are for "
        "products where they are faster and near enough, the rest is float16 then; auto: the fastest that passes the "
        "gate; model.onnx for ONNX Runtime is float32 whatever is said here",
    )
    layout: str = setting(
        "packed", choices=("packed", "padded"), help="all tokens in one row, no padding computed; or batch x length"
    )
    gelu: str | None = setting(
        None,
        choices=("tanh", "erf"),
        help="another form of GELU than the checkpoint's: tanh joins the product before it, and the gate must pass",
    )


@dataclass(frozen=True)
class QuantisationConfig:
    """8-bit products, of --precision float8, int8 and auto."""

    calibrate: str | None = setting(
        None,
        help="questions to find the scales with, not those of --dev: a SQuAD .json or .json.gz, tfds:, builtin:; none: "
        "what the run was trained with, if it is to be had",
    )
    calibrate_limit: int = setting(128, least=16, most=1 << 16, help="how many of them, evenly spread; usual 64 to 512")
    quantisation_error: float | None = setting(
        None,
        above=0.0,
        most=1.0,
        help="root mean square error of the logits, as a share of how they vary; products that would make it larger "
        "stay float16; usual 0.01 to 0.1; none: 0.025, and a half and a quarter of it where the comparison says no; "
        "1 is no limit, for measuring speed: no product is tried alone then",
    )
    weight_scales: str = setting(
        "auto",
        choices=("auto", "tensor", "channel"),
        help="one for a weight, or one for each of its outputs; auto: tensor for float8, channel for int8; float8 has "
        "channel on 9.0 alone",
    )


@dataclass(frozen=True)
class PlanConfig:
    """The TensorRT plan."""

    target: str = setting(
        "auto",
        choices=("auto", "tensorrt", "tensorrt_rtx", "none"),
        help="whose plan to build; auto takes what is installed, none builds no plan",
    )
    plugins: str = setting(
        "auto",
        help=f"all, none, or some of {','.join(plugins.PLUGINS)}; auto: all, none with --precision float32",
    )
    arch: str | None = setting(
        None,
        help="compute capabilities for plan and kernels, as in 80,89,120; "
        "none: this machine's GPU, or without one all that the target can build for",
    )
    max_tokens: int | None = setting(
        None, least=16, most=1 << 20, help="packed: most tokens a batch; none: --max-batch times --max-length"
    )
    max_batch: int = setting(32, least=1, most=4096, help="most sequences a batch")
    max_length: int | None = setting(
        None, least=16, most=1 << 16, help="most tokens a sequence; none: the run's window, usually 384"
    )
    usual_batch: int | None = setting(None, least=1, help="batch the plan is tuned for; none: a quarter of the most")
    usual_length: int | None = setting(None, least=1, help="length it is tuned for; none: a third of the most")
    algorithms: bool = setting(
        True,
        help="where the plan's GPU is at hand: time cuBLASLt's algorithms for all sizes, some seconds to a minute, and "
        "keep the choices in the folder; --no-algorithms leaves that to whoever first meets a size",
    )
    refit: bool = setting(False, help="weights of the plan can be exchanged later, where the target can")
    version_compatible: bool = setting(False, help="the plan runs on later TensorRT versions, where the target can")
    weight_streaming: bool = setting(False, help="weights may stay in the host's memory, where the target can")


@dataclass(frozen=True)
class GateConfig:
    """The comparison with the checkpoint, after which the folder is put in its place."""

    verify: bool = setting(True, help="compare with the checkpoint; --no-verify leaves TensorFlow out")
    dev: str | None = setting(
        None, help="examples to compare on, of the run's task, as train.py --dev takes them; none: of squad "
        "builtin:dev-facts",
    )  # fmt: skip
    dev_limit: int | None = setting(None, least=1, help="take so many of them only")
    tolerance: float | None = setting(
        None,
        above=0.0,
        help="largest difference of a logit allowed; "
        f"none: {', '.join(f'{value:g} for {name}' for name, value in LOGITS.items())}, {ANOTHER_GELU:g} with --gelu",
    )
    tolerance_answers: float | None = setting(
        None,
        least=0.0,
        most=100.0,
        help="percent of answers that may change; "
        f"none: {', '.join(f'{value:g} for {name}' for name, value in ANSWERS.items())}",
    )
    tolerance_f1: float = setting(
        0.1,
        least=0.0,
        most=100.0,
        help="points of the task's score (F1, accuracy ...) that may be lost; a loss that may be chance is allowed",
    )
    tolerance_f1_proven: float | None = setting(
        None,
        least=0.0,
        most=100.0,
        help="points of F1 that may be lost even by the lower end of the 95 % interval of the difference, which on few "
        "questions is far down; none: not asked; 0.3 with --precision float8 or int8 is what a record asks for",
    )


@dataclass(frozen=True)
class ExportConfig(GateConfig, PlanConfig, QuantisationConfig, GraphConfig):
    """Turn a run into an engine folder that answers questions, and prove that it answers what the checkpoint answers.

    The folder holds model.onnx (float32, ONNX Runtime on any CPU), model.PRECISION.onnx and model.plan (TensorRT),
    kernels/, vocab.txt and engine.json. serve.py reads it. Examples:

      python export.py --run runs/student --out engines/student
      python export.py --run runs/student --hf published/student
      python export.py --run runs/student --out engines/student --triton triton/models
      python export.py --run all-MiniLM-L6-v2/ --task embed --out engines/minilm --dev pairs.csv
    """

    def __post_init__(self):
        if self.triton and not self.out:
            raise UsageError("--triton is written from an engine folder; give --out as well")
        if not self.out and not self.hf:
            raise UsageError("--out for an engine folder is needed, or --hf for Hugging Face's transformers, or both")
        chosen = self.plugin_names()
        if chosen and self.precision == "float32":
            raise UsageError(
                "the plugins compute in float16 and bfloat16; take --plugins none with --precision float32"
            )
        self.architectures()
        if self.precision in FORMATS:
            self._check_formats(chosen)

    def _check_formats(self, chosen: tuple[str, ...]) -> None:
        """What an 8-bit precision needs: our plugins, which alone know such products, and GPUs that do."""
        if missing := [name for name in plugins.PLUGINS if name not in chosen and name not in OPTIONAL]:
            raise UsageError(f"--precision {self.precision} needs the plugins {listed(missing)}; take --plugins all")
        first = formats.FIRST[self.precision]
        if older := [arch for arch in self.architectures() or () if arch < first]:
            raise UsageError(f"--precision {self.precision} is for GPUs from {first} on; --arch says {listed(older)}")

    @property
    def base(self) -> str:
        """What is not 8 bits wide has this precision."""
        return BASE if self.precision in FORMATS else self.precision

    def channels(self, architectures: tuple[int, ...]) -> bool:
        """Whether a weight has a scale for each output, in a plan for these GPUs. Raises: UsageError."""
        if self.weight_scales == "channel" and self.precision == "float8" and set(architectures) != {90}:
            raise UsageError("cuBLASLt has scales for each output of float8 on 9.0 alone; take --weight-scales tensor")
        return self.weight_scales == "channel" or (self.weight_scales == "auto" and self.precision == "int8")

    def tolerances(self, precision: str, another_gelu: bool) -> Tolerance:
        """What a runtime in this precision may differ by; --tolerance and its like are for all of them."""
        logit, answers = LOGITS[precision], ANSWERS[precision]
        if another_gelu:
            logit, answers = max(logit, ANOTHER_GELU), max(answers, ANSWERS["float16"])
        return Tolerance(
            self.tolerance if self.tolerance is not None else logit,
            self.tolerance_answers if self.tolerance_answers is not None else answers,
            self.tolerance_f1,
            self.tolerance_f1_proven if precision in FORMATS else None,
        )

    def plugin_names(self) -> tuple[str, ...]:
        """The plugins of --plugins, in the order of `plugins.PLUGINS`."""
        said = self.plugins
        if said == "auto":
            said = "none" if self.precision == "float32" else "all"
        if said in ("all", "none"):
            return tuple(plugins.PLUGINS) if said == "all" else ()
        names = [name.strip() for name in said.split(",")]
        for name in names:
            if name not in plugins.PLUGINS:
                near = nearest(name, plugins.PLUGINS)
                raise UsageError(f"--plugins: no plugin {name!r}{near}; there are all, none, {listed(plugins.PLUGINS)}")
        return tuple(name for name in plugins.PLUGINS if name in names)

    def architectures(self) -> tuple[int, ...] | None:
        """The compute capabilities of --arch, ascending; None where nothing was said."""
        if self.arch is None:
            return None
        found = set()
        for word in self.arch.split(","):
            text = word.strip().removeprefix("sm_").replace(".", "")
            if not text.isdecimal() or int(text) not in plugins.ARCHITECTURES:
                raise UsageError(
                    f"--arch: {word.strip()!r} is not known; there are {listed(plugins.ARCHITECTURES)}, "
                    "90 is compute capability 9.0"
                )
            found.add(int(text))
        return tuple(sorted(found))
