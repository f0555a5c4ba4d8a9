"""What the tests of export share: a tiny model with awkward sizes, run folders of it, batches, the command.

Only what every test needs is imported up here: those for a GPU run where TensorFlow may be missing.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from safetensors.numpy import save_file

from heads import Head, default, find
from model import run_folder
from model.config import BertConfig
from model.weights import expected_shapes
from serve.packed import ROWS, Packed

SPAN = default()

# Heads of 26 as in tinybert-4l-312, which the graph pads to 32.
SIZES = BertConfig(vocabulary=400, hidden=52, layers=2, heads=2, ffn=40, positions=64)
LENGTHS = (7, 1, 64, 12, 3)  # one token, one long among short ones
TAIL = 5  # tokens of a packed row that belong to no sequence


def tensors(config: BertConfig, seed: int = 0, head: Head = SPAN) -> dict[str, np.ndarray]:
    """Random weights of a trained model's order of magnitude."""
    random = np.random.default_rng(seed)
    found = {}
    for name, shape in expected_shapes(config, head).items():
        values = random.normal(0, 0.2, shape)
        found[name] = (values + name.endswith(".scale")).astype(np.float32)
    return found


def run(folder: Path, config: BertConfig = SIZES, **changes: Any) -> Path:
    """A run folder with random weights; changes: of its config.json."""
    (folder / "best").mkdir(parents=True)
    head = find(changes.get("task", SPAN.task), changes.get("labels", ()))
    save_file(tensors(config, head=head), folder / "best" / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    tokenizer = {"lowercase": True, "strip_accents": None, "chinese": True}
    info = run_folder.RunInfo(config.to_dict(), tokenizer, window=64, stride=32, query=24, max_answer_tokens=20)
    run_folder.write(folder, replace(info, **changes))
    return folder


def vocabulary() -> list[str]:
    """As many pieces as SIZES has rows: special ones, letters, and a few hundred words."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *".,?!'-"]
    return pieces + [f"word{index}" for index in range(SIZES.vocabulary - len(pieces))]


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of a run's config.json."""
    stated = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(stated), encoding="utf-8")


def change_weights(folder: Path, **changes: Any) -> None:
    """Write best/model.safetensors anew; a dot in a name is two underscores, None takes a tensor out."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    kept = {name: value for name, value in (tensors(SIZES) | named).items() if value is not None}
    save_file(kept, folder / "best" / "model.safetensors")


def batch(config: BertConfig = SIZES, lengths: tuple[int, ...] = LENGTHS) -> Packed:
    """Random sequences of these lengths."""
    random = np.random.default_rng(1)
    ids, segments = ([random.integers(0, most, length) for length in lengths] for most in (config.vocabulary, 2))
    return Packed.of(ids, segments)


def packed_inputs(sequences: Packed, tail: int = TAIL) -> dict[str, np.ndarray]:
    """A packed graph's inputs, with so many tokens behind the last sequence."""
    extra = {name: np.ones(tail, np.int32) for name in ROWS}
    rows = {name: np.concatenate([getattr(sequences, name), extra[name]]) for name in ROWS}
    return rows | {"cu_seqlens": sequences.cu_seqlens}


def compute(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of an ONNX model (or of a file) on ONNX Runtime."""
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, inputs)]


def export(*argv: object) -> dict:
    """The command in this process; returns its result."""
    from configs import options
    from export import __main__ as command
    from export.config import ExportConfig

    return command.main(options.parse(ExportConfig, list(map(str, argv)), "export"))
