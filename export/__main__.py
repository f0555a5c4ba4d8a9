"""`python export.py`: a run folder becomes an engine folder, or a folder for Hugging Face's transformers, or both."""

import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs import command
from configs.errors import UsageError, UserError
from export import algorithms, calibration, engine, files, graph, hf, manifest, out_folder, precision, profile, triton
from export import checkpoint as checkpoints
from export.checkpoint import Checkpoint
from export.comparison import Questions
from export.config import ExportConfig
from export.kept import Kept
from export.quantisation import FORMATS
from export.verify import Gate, GateError, cannot_run
from plugins import compile as compiler
from plugins import kernels, ops_of, tensorrt_flavour
from serve import gpu
from serve.manifest import MODEL, PLAN, VOCABULARY, Profile


def say(text: str) -> None:
    print(text, flush=True)


def main(config: ExportConfig) -> dict:
    """Export as told; returns {"out", "metrics"}."""
    checkpoint = checkpoints.read(config.run, config.task)
    inputs = {"--run": config.run, "--dev": None if ":" in (config.dev or ":") else config.dev}
    metrics: dict[str, Any] = {}
    places = [
        ("--out", config.out, manifest.is_engine),
        ("--hf", config.hf, hf.ours),
        ("--triton", config.triton, triton.ours),
    ]
    for flag, out, ours in places:
        if out:
            out_folder.check(flag, Path(out), config.overwrite, ours, inputs)
    if config.triton:
        triton.refuse(config.layout, Path(str(config.out)).name)
    if config.hf:
        with out_folder.scratch(Path(config.hf)) as folder:
            hf.write(folder, checkpoint)
            out_folder.move(folder, Path(config.hf))
        say(f"{config.hf}: for transformers' {hf.architecture(checkpoint)}.from_pretrained")
    if config.out:
        metrics = export_engine(config, checkpoint, Path(config.out))
    if config.out and config.triton:
        export_triton(config, checkpoint, Path(config.out), Path(config.triton))
    return {"out": config.out or config.hf, "metrics": metrics}


def export_engine(config: ExportConfig, checkpoint: Checkpoint, out: Path) -> dict[str, Any]:
    """Write the engine folder `out`, by the first of the attempts that passes the gate.

    Raises: UserError; after a failed comparison the folder lies in `out`.failed.
    """
    found, kept = precision.attempts(config), Kept()
    for place, (settings, why) in enumerate(found):
        if len(found) > 1 or config.precision == "auto":
            say(f"precision: {settings.precision} ({why})")
        try:
            return export_in(settings, checkpoint, out, kept)
        except GateError as error:
            if place + 1 == len(found):
                raise
            say(f"precision: not {settings.precision} so: {error}")
    raise AssertionError("there is always a candidate")


def export_in(config: ExportConfig, checkpoint: Checkpoint, out: Path, kept: Kept) -> dict[str, Any]:
    """The same in the settings' precision, which is one. kept: what attempts before this one have found out."""
    failed = out.with_name(out.name + ".failed")
    out_folder.check("the place for a failed engine,", failed, True, manifest.is_engine, {"--run": config.run})
    shapes = profile.choose(config, checkpoint, config.layout)
    target, trt, why = engine.choose_target(config.target)
    say(f"target: {f'{target} {tensorrt_flavour.version(trt)}' if target else 'none'} ({why})")
    plan = choose_plan(config, trt, shapes) if target else None
    # Before minutes go into a plan: are the questions there?
    questions = kept.once("questions", lambda: dev_questions(config, checkpoint)) if config.verify else None
    with out_folder.scratch(out) as folder, tempfile.TemporaryDirectory() as work:
        estimate = Path(work) / "estimate.onnx"
        about = write(folder, config, checkpoint, shapes, target, trt, plan, estimate, kept)
        if plan and config.algorithms and not cannot_run(plan.architectures) and algorithms.search(folder, plan, say):
            manifest.write(folder, about)  # which lists the file
        if questions:
            gate = make_gate(folder, config, checkpoint, questions, target, trt, plan, estimate, kept)
            try:
                about["verified"] = gate.run(say)
            except GateError as error:
                about["verified"] = error.report
                manifest.write(folder, about)
                out_folder.move(folder, failed)
                raise GateError(f"{error}; the engine lies in {failed} to be looked at", error.report) from error
            about["plan"]["was_run"] = about["verified"]["runtime"] == "tensorrt"
            manifest.write(folder, about)
        else:
            say("gate: left out (--no-verify); nothing is known of this engine's answers")
        out_folder.move(folder, out)
    return measured(about, out)


def export_triton(config: ExportConfig, checkpoint: Checkpoint, engine_folder: Path, out: Path) -> None:
    """Write the model repository `out` from a finished engine folder."""
    gelu = config.gelu or checkpoint.config.gelu
    with out_folder.scratch(out) as folder:
        triton.write(folder, engine_folder, engine_folder.name, checkpoint, gelu)
        out_folder.move(folder, out)
    say(f"{out}: a model repository for Triton, not loaded in a container; its README.md says how to")


def dev_questions(config: ExportConfig, checkpoint: Checkpoint) -> Questions:
    return Questions.read(checkpoint, dev_of(config, checkpoint), config.dev_limit)


def dev_of(config: ExportConfig, checkpoint: Checkpoint) -> str:
    """What is compared on. Raises: UsageError where nothing was named and the task has nothing built in."""
    if found := config.dev or checkpoint.head.builtin:
        return found
    raise UsageError(
        f"--dev is needed: examples of --task {checkpoint.head.task} on which the engine is compared with the "
        "checkpoint; or leave the comparison out with --no-verify"
    )


def choose_plan(config: ExportConfig, trt: Any, shapes: Profile) -> engine.Plan:
    """What the plan is built for. Raises: UserError where this TensorRT cannot."""
    found = gpu.find()
    here = None if isinstance(found, str) else found.architecture
    architectures = engine.choose_architectures(trt, config.precision, config.architectures(), here)
    features = tuple(name for name in engine.FEATURES if getattr(config, name))
    engine.refuse_missing(trt, features)
    plan = engine.Plan(config.plugin_names(), architectures, shapes, features)
    machine = f"no GPU here: {found}" if isinstance(found, str) else found.name
    say(f"plan: {config.precision}, {config.layout}, for sm_{', sm_'.join(map(str, architectures))} ({machine})")
    say(f"plugins: {', '.join(plan.plugins) or 'none'}")
    return plan


def write(
    folder: Path, config: ExportConfig, checkpoint: Checkpoint, shapes: Profile, target: str | None, trt: Any,
    plan: engine.Plan | None, estimate: Path, kept: Kept,
) -> dict[str, Any]:  # fmt: skip
    """All files of the engine; returns what engine.json says before the comparison.

    estimate: where an 8-bit engine's graph is written in float32 for the gate, outside of the folder.
    """
    sizes = checkpoint.config
    gelu = config.gelu or sizes.gelu
    variants = kernels_for(config, checkpoint, gelu, plan) if plan else []
    settings: dict[str, Any] = {"layout": config.layout, "gelu": gelu, "head": checkpoint.head}
    files.save(graph.build(checkpoint.tensors, sizes, precision="float32", **settings), folder / MODEL)
    source = plan_source(folder, config)
    result = quantise(folder / MODEL, config, checkpoint, gelu, plan, kept) if config.precision in FORMATS else None
    if result:
        settings["quantisation"] = result.quantisation
        files.save(graph.build(checkpoint.tensors, sizes, precision="float32", **settings), estimate)
    expected = graph.expected_nodes(sizes, gelu)
    if config.precision != "float32":
        bare = bare_ops(target, plan)
        fused = graph.fuses(plan.plugins if plan else ())
        narrow = graph.build(
            checkpoint.tensors, sizes, precision=config.base, fused=fused, bare=bare, **settings
        )  # fmt: skip
        expected = graph.count_nodes(narrow) if result else graph.expected_nodes(sizes, gelu, fused=fused)
        files.save(narrow, source)
    shutil.copyfile(checkpoint.tokenizer.vocab_file, folder / VOCABULARY)
    built = None
    if plan:
        start = time.monotonic()
        layers = engine.build(trt, source, folder / PLAN, plan, expected)
        for op, count in layers.items():
            say(f"  {op}: {count} plugin layers for {expected[op]} nodes")
        size = (folder / PLAN).stat().st_size
        say(f"plan: {size / 2**20:.1f} MiB in {time.monotonic() - start:.1f} s")
        write_kernels(folder, variants, plan)
        built = {
            "target": target,
            "tensorrt": tensorrt_flavour.version(trt),
            "architectures": list(plan.architectures),
            # Those that the plan calls: the tanh form, for one, leaves `gelu` without a node.
            "plugins": [name for name in plan.plugins if layers.keys() & set(ops_of([name]))],
            "plugin_layers": layers,
            "features": list(plan.features),
        }
    about = manifest.describe(
        checkpoint, precision=config.precision, layout=config.layout, gelu=gelu, profile=shapes, plan=built
    )
    if result:
        about["quantisation"] = result.report
    manifest.write(folder, about)
    return about


def quantise(
    model: Path, config: ExportConfig, checkpoint: Checkpoint, gelu: str, plan: engine.Plan | None, kept: Kept
) -> calibration.Result:
    """Which products become 8 bits wide, and their scales. Raises: UserError without questions to calibrate with."""
    data, why = calibration.source(config.calibrate, checkpoint)
    say(f"calibration: {data} ({why})")
    questions = kept.once("calibration", lambda: calibration.read(checkpoint, data, config.calibrate_limit))
    times = kept.once("times", lambda: precision.product_times(checkpoint.config, config, gelu, plan))
    assert config.quantisation_error is not None, "precision.attempts has chosen"
    return calibration.calibrate(
        model, checkpoint, questions, format=config.precision, layout=config.layout, gelu=gelu,
        channels=config.channels(plan.architectures if plan else ()),
        padded_head=graph.padded_head_size(checkpoint.config), error=config.quantisation_error,
        times=times, say=say, kept=kept,
    )  # fmt: skip


def plan_source(folder: Path, config: ExportConfig) -> Path:
    """The graph in the plan's precision."""
    return folder / (MODEL if config.precision == "float32" else f"model.{config.precision}.onnx")


def bare_ops(target: str | None, plan: engine.Plan | None) -> frozenset[str]:
    """Ops without a body: full TensorRT takes a plugin for certain only where there is no body to inline."""
    return frozenset(ops_of(plan.plugins)) if plan and target == "tensorrt" else frozenset()


def kernels_for(config: ExportConfig, checkpoint: Checkpoint, gelu: str, plan: engine.Plan) -> list[compiler.Variant]:
    """What the plan's plugins launch. Raises: UserError where a plugin has no kernel for these sizes."""
    model = checkpoint.config
    sizes = compiler.Sizes(
        model.hidden, model.heads, graph.padded_head_size(model), model.ffn, config.layout,
        "none" if gelu == "erf" else "tanh", config.precision if config.precision in FORMATS else "",
    )  # fmt: skip
    try:
        return compiler.needed(sizes, config.base, plan.plugins)
    except ValueError as error:
        raise UserError(f"no kernels for this model: {error}; leave that plugin out of --plugins") from error


def write_kernels(folder: Path, variants: list[compiler.Variant], plan: engine.Plan) -> None:
    """kernels/sm_XX/ for every architecture of the plan."""
    if not variants:
        return
    start = time.monotonic()
    for arch in tqdm(plan.architectures, "compile kernels", unit="GPU", leave=False):
        kernels.write(folder, arch, compiler.compile_set(variants, arch).values())
    say(f"kernels: {len(variants)} for each of {len(plan.architectures)} GPUs in {time.monotonic() - start:.1f} s")


def make_gate(
    folder: Path, config: ExportConfig, checkpoint: Checkpoint, questions: Questions, target: str | None, trt: Any,
    plan: engine.Plan | None, estimate: Path, kept: Kept,
) -> Gate:  # fmt: skip
    source = plan_source(folder, config)

    def runner(batch):
        from export.plan_runner import plan_runner

        assert plan is not None
        here = kernels.KernelSet(folder) if (folder / "kernels").is_dir() else None
        return plan_runner(trt, source, plan, here, config.layout)(batch)

    changed = config.gelu not in (None, checkpoint.config.gelu)
    return Gate(
        folder, checkpoint, questions, config.precision, config.layout,
        tolerances={name: config.tolerances(name, changed) for name in ("float32", config.precision)},
        graph=source,
        architectures=plan.architectures if plan else None,
        graph_is_whole=not bare_ops(target, plan),
        plan_runner=runner,
        estimate=estimate if config.precision in FORMATS else None,
        kept=kept,
    )  # fmt: skip


def measured(about: dict[str, Any], out: Path) -> dict[str, Any]:
    """The metrics of the command's last line."""
    bytes_of = {path.name: path.stat().st_size for path in out.iterdir() if path.is_file()}
    report = about["verified"] or {}
    eight = report.get(f"{about['precision']}_on_cpu") if about["precision"] in FORMATS else None
    left_out = ("dev", "questions", "windows", "why", "mean_logit_difference", "onnxruntime", "plan")
    found = {name: value for name, value in report.items() if name not in left_out and not name.endswith("_on_cpu")}
    sizes = {"model_bytes": bytes_of[MODEL], "plan_bytes": bytes_of.get(PLAN, 0)}
    if eight:
        found["on_cpu"] = {name: value for name, value in eight.items() if name not in left_out}
    if table := about.get("quantisation"):
        found["products"] = Counter(item["precision"] for item in table["products"].values())
    return found | {"plugin_layers": about.get("plugin_layers", {})} | sizes


if __name__ == "__main__":
    command.run("export", ExportConfig, main)
