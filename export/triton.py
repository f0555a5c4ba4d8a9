"""A model repository for NVIDIA Triton Inference Server, from an engine folder: `export.py --out ENGINE --triton DIR`.

    DIR/README.md               what is there, and the commands that start it
    DIR/NAME/                   the front end, in Triton's Python backend: a head's request in, its response out
    DIR/NAME_onnx/              the encoder on ONNX Runtime, float32
    DIR/NAME_tensorrt/          the encoder for TensorRT, in the engine's precision

Both encoders take sequences of any length as ragged input: Triton's dynamic batcher puts them behind each other in one
row, and writes `cu_seqlens` itself (BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO). So Triton pads nothing, too; but it
counts sequences, not tokens, so its batches are limited to as many as the engine takes at their longest.

The front end has a copy of `heads/`, so it cuts text and decodes outputs as the rest of the project does.

Triton's TensorRT backend knows no plugins in Python and no plan of TensorRT-RTX. So NAME_tensorrt holds the graph with
all functions inlined, of standard ONNX alone, and the plan is built from it by `trtexec` in the container.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, inliner

from configs.errors import UserError
from export import files, graph
from export.checkpoint import Checkpoint
from export.quantisation import BASE, FORMATS
from heads import Head, Output
from serve import manifest as manifests
from serve.manifest import MODEL, VOCABULARY, Manifest
from serve.packed import ROWS

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("data", "configs", "heads")  # packages of ours that the front end needs
LEFT_OUT = ("batches.py", "builtin")  # of them: what needs TensorFlow, and questions
DELAY_US = 2000
CHARACTERS = 100_000
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,80}")
TYPES: dict[int, str] = {TensorProto.INT32: "TYPE_INT32", TensorProto.FLOAT: "TYPE_FP32"}
PLAN = "model.plan"
# Kind of a response's field (`Head.gives`) -> its tensor's type and size; one that may be missing is empty then.
KINDS = {
    "text": ("TYPE_STRING", 1), "whole": ("TYPE_INT32", 1), "number": ("TYPE_FP32", 1), "numbers": ("TYPE_FP32", -1),
    "json": ("TYPE_STRING", 1),
}  # fmt: skip
WHOLE = {"response": "json"}  # of a head that does not say what its response holds


def write(folder: Path, engine: Path, name: str, checkpoint: Checkpoint, gelu: str) -> None:
    """Write the repository into an empty folder.

    Args:
        engine: the engine folder, packed, of this checkpoint; model.onnx, the vocabulary and all settings are its own.
        name: the front end's; the encoders' begin with it.
        gelu: the form of the graph for TensorRT, which is in the engine's precision, or in 16 bits where that is 8:
            such products are our plugins', which Triton does not have.
    """
    manifest = manifests.read(engine)
    precision = BASE if manifest.precision in FORMATS else manifest.precision
    profile, longest = manifest.profile, manifest.window
    batch = min(profile.batch.most, profile.tokens.most // longest if profile.tokens else profile.batch.most)
    whole = graph.build(
        checkpoint.tensors, checkpoint.config, precision=precision, layout="packed", gelu=gelu, head=checkpoint.head
    )
    inlined = inliner.inline_local_functions(whole)
    for suffix, backend in (("onnx", "onnxruntime"), ("tensorrt", "tensorrt")):
        version = folder / f"{name}_{suffix}" / "1"
        version.mkdir(parents=True)
        if suffix == "onnx":
            shutil.copyfile(engine / MODEL, version / MODEL)
        else:
            files.save(inlined, version / MODEL)
        text = encoder_config(f"{name}_{suffix}", backend, batch, manifest.outputs)
        check(text, onnx.load(version / MODEL, load_external_data=False))
        (version.parent / "config.pbtxt").write_text(text, encoding="utf-8")
    front_end(folder / name, name, manifest)
    (folder / "README.md").write_text(readme(name, longest, batch, manifest.entry), encoding="utf-8")


def refuse(layout: str, name: str) -> None:
    """Raises: UserError where an export of this layout and name makes no repository."""
    if layout != "packed":
        raise UserError("--triton needs --layout packed: Triton's batches of sequences of any length are packed")
    if not NAME.fullmatch(name):
        raise UserError(f"--triton calls its models by the name of --out, and {name!r} is none for Triton; take "
                        "letters, digits, '.', '_' and '-'")  # fmt: skip


def ours(folder: Path) -> bool:
    """Whether `write` may have written this folder: a repository of a front end and its encoders, and nothing else."""
    there = {path.name for path in folder.iterdir()} - {"README.md"}
    shortest = min(there, key=len, default="")
    return there == {shortest, f"{shortest}_onnx", f"{shortest}_tensorrt"}


def encoder_config(name: str, backend: str, batch: int, given: Sequence[Output]) -> str:
    """config.pbtxt of an encoder that takes up to `batch` sequences and gives these outputs."""
    inputs = ",\n".join(
        f'  {{ name: "{row}" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true }}' for row in ROWS
    )
    dims = {output: ["-1"] * (output.per == "token") + [str(output.width)] * bool(output.width) for output in given}
    outputs = ",\n".join(
        f'  {{ name: "{output.name}" data_type: TYPE_FP32 dims: [ {", ".join(axes)} ] }}'
        for output, axes in dims.items()
    )
    scattered = ",\n".join(
        f'  {{ target_name: "{output.name}" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "token_ids" }}'
        for output in given if output.per == "token"
    )  # fmt: skip
    # Rows of a sequence go back to their request without being told.
    if scattered:
        scattered = f"# Each request gets back the outputs of its own tokens.\nbatch_output [\n{scattered}\n]\n"
    return f"""\
name: "{name}"
backend: "{backend}"
default_model_filename: "{MODEL if backend == "onnxruntime" else PLAN}"
max_batch_size: {batch}
# Sequences of different lengths share a batch: the rows of all of them behind each other, [T] each.
input [
{inputs}
]
# Where each sequence begins, and the number of tokens at the end: [B + 1].
batch_input [
  {{
    kind: BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO
    target_name: "cu_seqlens"
    data_type: TYPE_INT32
    source_input: "token_ids"
  }}
]
output [
{outputs}
]
{scattered}dynamic_batching {{ max_queue_delay_microseconds: {DELAY_US} }}
"""


def check(config: str, model: onnx.ModelProto) -> None:
    """Compare a config.pbtxt of `encoder_config` with a graph. Raises: UserError where names or types differ."""
    found = dict(re.findall(r'(?:target_name|name): "(\w+)" data_type: (\w+)', " ".join(config.split())))
    graph_says = {
        value.name: TYPES.get(value.type.tensor_type.elem_type, "?")
        for value in (*model.graph.input, *model.graph.output)
    }
    flat = all(len(value.type.tensor_type.shape.dim) == 1 for value in model.graph.input)
    if found != graph_says or not flat:
        raise UserError(f"the repository's config.pbtxt names {found}, the graph {graph_says}; this is a fault of ours")


def front_end(folder: Path, name: str, manifest: Manifest) -> None:
    """The model in Triton's Python backend, with the packages that it needs."""
    version = folder / "1"
    version.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("triton_model.py"), version / "model.py")
    shutil.copyfile(manifest.folder / VOCABULARY, version / VOCABULARY)
    skip = shutil.ignore_patterns("__pycache__", "*.toml", *LEFT_OUT)
    for package in SOURCES:
        shutil.copytree(ROOT / package, version / package, ignore=skip)
    (version / "settings.json").write_text(json.dumps(settings(manifest), indent=1) + "\n", encoding="utf-8")
    (folder / "config.pbtxt").write_text(front_end_config(name, manifest.entry), encoding="utf-8")


def settings(manifest: Manifest) -> dict[str, Any]:
    """What the front end has to know of the engine."""
    names = ("task", "labels", "head", "tokenizer", "window", "stride", "query", "max_answer_tokens",
             "no_answer_threshold")  # fmt: skip
    more = {"max_characters": CHARACTERS, "gives": manifest.entry.gives or WHOLE}
    more["outputs"] = [output.name for output in manifest.outputs]
    return {name: getattr(manifest, name) for name in names} | more


def front_end_config(name: str, head: Head) -> str:
    """config.pbtxt of the front end: one request at a time, which need not come with others, its windows do."""
    inputs = ",\n".join(
        f'  {{ name: "{field}" data_type: TYPE_STRING dims: [ {-1 if about.many else 1} ]'
        f"{'' if about.needed else ' optional: true'} }}"
        for field, about in head.fields.items()
    )
    kinds = {field: KINDS[kind.removesuffix("?")] for field, kind in (head.gives or WHOLE).items()}
    outputs = ",\n".join(
        f'  {{ name: "{field}" data_type: {kind} dims: [ {-1 if head.gives.get(field, "").endswith("?") else size} ] }}'
        for field, (kind, size) in kinds.items()
    )
    return f"""\
name: "{name}"
backend: "python"
max_batch_size: 0
input [
{inputs}
]
output [
{outputs}
]
# Which encoder it asks: "{name}_onnx", or "{name}_tensorrt" once its plan is built.
parameters {{ key: "encoder" value: {{ string_value: "{name}_onnx" }} }}
instance_group [ {{ kind: KIND_CPU count: 2 }} ]
"""


def readme(name: str, longest: int, batch: int, head: Head) -> str:
    """README.md of the repository."""
    takes = "\n".join(
        f"- `{field}`: {about.about}{'' if about.needed else ' (may be left out)'}"
        for field, about in head.fields.items()
    )
    gives = ", ".join(
        f"`{field}`{' as JSON' if kind == 'json' else ''}" for field, kind in (head.gives or WHOLE).items()
    )

    def shape(count: int, length: int) -> str:
        return ",".join([*(f"{row}:{count * length}" for row in ROWS), f"cu_seqlens:{count + 1}"])

    return f"""\
# {name} for NVIDIA Triton Inference Server

An engine for {head.title} (`--task {head.task}`), by the HTTP and gRPC of Triton. Written by Retort's export.py; it
was not loaded in a container there: the messages of config.pbtxt, the graphs' names and types and the front end were
checked without.

    docker run --gpus all --rm -p 8000:8000 -v $PWD:/models TRITON sh -c \\
        "pip install numpy tokenizers && tritonserver --model-repository /models --model-control-mode explicit \\
         --load-model {name} --load-model {name}_onnx"

TRITON is a full image of Triton, with the backends python, onnxruntime and tensorrt. `{name}` gives {gives}. It takes

{takes}

`{name}_tensorrt` has no plan yet, since a plan is for one TensorRT and one kind of GPU. In the container, there:

    cd /models/{name}_tensorrt/1
    trtexec --onnx={MODEL} --saveEngine={PLAN} --stronglyTyped --minShapes={shape(1, 1)} \\
        --optShapes={shape(max(batch // 4, 1), max(longest // 3, 1))} --maxShapes={shape(batch, longest)}

Then write `{name}_tensorrt` for `{name}_onnx` in `{name}/config.pbtxt` and in the command above.
"""
