"""A tiny engine folder whose answers can be worked out by hand, written without export: for the tests of serve/.

The model knows 60 pieces. A token's value is `table[id] + 0.01 position + 0.1 segment`; its start logit is that value
plus a thousandth of the sum over its own sequence, its end logit the value of the second column likewise. So a token
that is taken for a neighbour's, a wrong position or a leak between sequences each change the logits.

For other heads than the span's both columns are the output: of every token, or of a sequence their sums over it, as a
vector of length 1. So a text with more of "ada" is of the first class, and of "lovelace" of the second.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import heads
from configs.errors import UserError
from heads import Head
from serve.packed import Packed

WORDS = ("who", "when", "wrote", "it", "was", "by", "ada", "lovelace", "in", "1843", "the", "notes", "?", ".")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
ROWS, POSITIONS = 60, 64
START, END = PIECES.index("ada"), PIECES.index("lovelace")
QUESTION, PASSAGE = "who wrote it ?", "The notes were written: it was by Ada Lovelace in 1843."


def table() -> np.ndarray:
    """float32 [ROWS, 2]: what each piece adds to start and end; "ada lovelace" is the best span wherever it stands."""
    values = np.random.default_rng(0).uniform(-0.5, 0.5, (ROWS, 2)).astype(np.float32)
    values[START, 0] = values[END, 1] = 5.0
    return values


def expected(batch: Packed) -> tuple[np.ndarray, np.ndarray]:
    """The model's logits in float64."""
    values = table().astype(np.float64)[batch.token_ids]
    values += 0.01 * batch.position_ids[:, None] + 0.1 * batch.segment_ids[:, None]
    sums = np.add.reduceat(values, batch.cu_seqlens[:-1], axis=0)
    logits = values + 0.001 * np.repeat(sums, batch.lengths, axis=0)
    return logits[:, 0], logits[:, 1]


def model(layout: str = "packed", head: Head | None = None) -> onnx.ModelProto:
    """The same in standard ONNX, packed or padded; head: another one than the span's."""
    nodes: list[onnx.NodeProto] = []
    constants = {
        "table": table(), "tenth": np.float32(0.1), "hundredth": np.float32(0.01), "thousandth": np.float32(0.001),
        "last": np.array([-1]), "first": np.array([0]), "one_step": np.array(1), "nil": np.array(0),
        "axis_1": np.array(1), "to_start": np.array(0), "to_end": np.array(1), "one_less": np.array([-1]),
    }  # fmt: skip

    def add(op: str, inputs: str, output: str, **attributes) -> None:
        nodes.append(helper.make_node(op, inputs.split(), [output], **attributes))

    rows = ["T"] if layout == "packed" else ["B", "S"]
    inputs = {"token_ids": rows, "segment_ids": rows}
    if layout == "packed":
        inputs |= {"position_ids": rows, "cu_seqlens": ["B+1"]}
        add("Identity", "position_ids", "places")
        add("Shape", "token_ids", "shape")
        add("Squeeze", "shape", "length")
        add("Range", "nil length one_step", "place")
        add("Cast", "place", "place32", to=TensorProto.INT32)
        add("Unsqueeze", "place32 last", "column")
        add("Unsqueeze", "cu_seqlens first", "offsets")
        add("GreaterOrEqual", "column offsets", "begun")
        add("Cast", "begun", "counted", to=TensorProto.INT32)
        add("ReduceSum", "counted last", "sequence", keepdims=1)  # [T, 1]
        add("Transpose", "sequence", "sequence_row", perm=[1, 0])
        add("Equal", "sequence sequence_row", "seen")  # [T, T]
        add("Cast", "seen", "weights", to=TensorProto.FLOAT)
    else:
        inputs["padding_mask"] = rows
        add("Shape", "token_ids", "shape")
        add("Gather", "shape axis_1", "length", axis=0)
        add("Range", "nil length one_step", "place")
        add("Expand", "place shape", "places")
        add("Cast", "padding_mask", "mask", to=TensorProto.FLOAT)
        constants["middle"] = np.array([1])
        add("Unsqueeze", "mask middle", "weights")  # [B, 1, S]
    for name, source, factor in (("by_place", "places", "hundredth"), ("by_segment", "segment_ids", "tenth")):
        add("Cast", source, f"{name}_float", to=TensorProto.FLOAT)
        add("Mul", f"{name}_float {factor}", f"{name}_row")
        add("Unsqueeze", f"{name}_row last", name)
    add("Gather", "table token_ids", "pieces", axis=0)
    add("Add", "pieces by_place", "placed")
    add("Add", "placed by_segment", "values")  # rows+[2]
    add("MatMul", "weights values", "sums")
    add("Mul", "sums thousandth", "share")
    add("Add", "values share", "both")
    outputs = (head or heads.default()).outputs(2)
    if len(outputs) == 2:
        add("Gather", "both to_start", "start_logits", axis=-1)
        add("Gather", "both to_end", "end_logits", axis=-1)
    elif outputs[0].per == "token":
        add("Identity", "both", outputs[0].name)
    else:
        if layout == "packed":
            add("Slice", "cu_seqlens first one_less", "starts")
            add("Gather", "sums starts", "whole", axis=0)  # [B, 2]
        else:
            add("Gather", "sums nil", "whole", axis=1)
        add("LpNormalization", "whole", "unit", axis=-1, p=2)
        constants["width"] = np.array([outputs[0].width])
        add("Slice", "unit first width last", outputs[0].name)
    shapes = [(rows if one.per == "token" else ["B"]) + ([one.width] if one.width else []) for one in outputs]
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name, shape in inputs.items()],
        [
            helper.make_tensor_value_info(one.name, TensorProto.FLOAT, shape)
            for one, shape in zip(outputs, shapes, strict=True)
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def stated(layout: str = "packed", **changes) -> dict:
    """engine.json of the tiny engine, without its files."""
    profile = {"batch": [1, 4, 8], "tokens": [1, 64, 160]} if layout == "packed" else {
        "batch": [1, 4, 8], "length": [4, 16, 32]
    }  # fmt: skip
    sizes = {"vocabulary": ROWS, "hidden": 2, "layers": 1, "heads": 1, "ffn": 2, "positions": POSITIONS, "segments": 2}
    return {
        "format": 1, "task": "squad", "labels": [], "layout": layout, "precision": "float16", "sizes": sizes,
        "gelu": "erf", "tokenizer": {"lowercase": True, "strip_accents": None, "chinese": True},
        "window": 24, "stride": 8, "query": 6, "max_answer_tokens": 8, "no_answer_threshold": None,
        "profile": profile, "plan": {"built": False, "was_run": False}, "checkpoint": {"sha256": "0" * 64, "run": "x"},
    } | changes  # fmt: skip


def write(folder: Path, layout: str = "packed", *, extra: dict[str, bytes] | None = None, **changes) -> Path:
    """An engine folder: the model, the vocabulary, files of `extra`, and an engine.json that lists them all."""
    folder.mkdir(parents=True, exist_ok=True)
    about = stated(layout, **changes)
    head = None
    with contextlib.suppress(UserError):  # a test may want an engine.json that is wrong
        head = heads.find(about["task"], about["labels"], about.get("head"))
    onnx.save(model(layout, head), folder / "model.onnx")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    for name, content in (extra or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    relist(folder, about)
    return folder


def with_plan(folder: Path, **changes) -> Path:
    """The same with a plan of 100 bytes that no TensorRT would take: for what is checked before it is opened."""
    about = {"target": "tensorrt_rtx", "tensorrt": "9.9.9.9", "architectures": [90], "plugins": {}}
    return write(folder, extra={"model.plan": bytes(100)}, **(about | changes))


def relist(folder: Path, about: dict) -> None:
    """Write engine.json over the files that lie in the folder now."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()
        }
        for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "engine.json"
    }  # fmt: skip
    (folder / "engine.json").write_text(json.dumps(about | {"files": files}), encoding="utf-8")


def near(one: Any, other: Any, most: float = 1e-4) -> bool:
    """Whether two values of JSON are the same but for what numbers differ by."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[name], other[name], most) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(near(*pair, most) for pair in zip(one, other, strict=True))
    return abs(one - other) < most if isinstance(one, float) else one == other


def batch(*lengths: int, seed: int = 0) -> Packed:
    """Random ids in sequences of these lengths, the second half of each in segment 1."""
    random = np.random.default_rng(seed)
    segments = [[0] * (length // 2) + [1] * (length - length // 2) for length in lengths]
    return Packed.of([random.integers(0, ROWS, length) for length in lengths], segments)


def random_batch(random: np.random.Generator) -> Packed:
    """One to eight sequences of up to 19 tokens, drawn from `random`."""
    return batch(*random.integers(1, 20, random.integers(1, 9)), seed=int(random.integers(1000)))
