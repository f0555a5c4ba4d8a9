"""The things the gate compares: Keras on the checkpoint, and ONNX files and plans with marked outputs.

Keras is the only reason for TensorFlow in this folder; it is imported when a `Keras` is made.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tqdm import tqdm

from configs.errors import UserError
from data.batches import Windows
from export.checkpoint import Checkpoint
from export.comparison import Logits
from export.first_difference import HEAD, Runner, Values, mark
from export.graph import WHOLE
from serve import gpu
from serve.packed import ROWS, Packed, cut

KERAS_TOKENS = 8192  # a forward pass, padding included
ONNX_TOKENS, ONNX_WINDOWS = 768, 8  # a batch of an ONNX file: packed attention there is quadratic in its tokens
ENDS = "layer_{}/ffn/norm"


class Keras:
    """The checkpoint as it was trained: Keras, float32. Raises: UserError where there is no TensorFlow."""

    def __init__(self, checkpoint: Checkpoint):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings hide what matters
        try:
            import tensorflow as tf

            from model.heads import HeadModel
        except ImportError as error:
            raise UserError(
                f"the comparison with the checkpoint runs it in Keras on TensorFlow, and {error}; install both, "
                "or leave it out with --no-verify"
            ) from error
        tf.config.experimental.enable_tensor_float_32_execution(False)  # the reference is float32 on a GPU, too
        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)  # or nothing is left for TensorRT
        self.model: Any = HeadModel(checkpoint.head, checkpoint.config)
        for name, variable in self.model.names().items():
            variable.assign(checkpoint.tensors[name])
        shape = tf.TensorSpec((None, None), tf.int32)
        self._forward = tf.function(self.model, input_signature=[shape] * 3, autograph=False)

    def logits(self, features: Windows) -> Logits:
        """Of each of the head's outputs an array for every window, in the order of the features."""
        outputs = self.model.head.outputs(self.model.config.hidden)
        found: tuple[list, ...] = tuple([None] * len(features) for _ in outputs)
        length = features.length
        groups = cut(length, KERAS_TOKENS, 256, padded=True)
        for rows in tqdm(groups, "Keras", unit="batch", leave=False, mininterval=1.0):
            batch = features.assemble(rows, int(length[rows].max()))
            results = self._forward(batch["token_ids"], batch["segment_ids"], batch["padding_mask"])
            for output, kept, result in zip(outputs, found, results, strict=True):
                values = result.numpy()  # [B, S, ...] or [B, ...]
                for place, row in enumerate(rows):
                    kept[row] = values[place, : length[row]] if output.per == "token" else values[place]
        return found

    def ends(self, batch: Packed) -> Runner:
        """The outputs of the embeddings, of every layer and of the head for these sequences."""
        inputs, mask = padded(batch)
        arguments = [inputs[name] for name in ("token_ids", "segment_ids", "padding_mask")]
        hidden = self.model.encoder(*arguments, want=("hidden",)).hidden
        names = ["embeddings", *(ENDS.format(index) for index in range(len(hidden) - 1))]
        values = {name: array.numpy()[mask] for name, array in zip(names, hidden, strict=True)}
        outputs = self.model.head.outputs(self.model.config.hidden)
        for output, array in zip(outputs, self.model.logits(hidden[-1], arguments[-1]), strict=True):
            values[HEAD + output.name] = real(array.numpy(), mask if output.per == "token" else None)
        return lambda wanted: {name: values[name] for name in wanted}


def session_logits(session: Any, features: Windows, title: str) -> Logits:
    """Of each output an array for every window, by a `serve.session.Session`."""
    found: tuple[list, ...] = tuple([None] * len(features) for _ in session.manifest.outputs)
    profile, length = session.manifest.profile, features.length
    most = profile.tokens.most if profile.tokens else profile.batch.most * profile.length.most
    for rows in tqdm(cut(length, most, profile.batch.most), title, unit="batch", leave=False, mininterval=1.0):
        parts = session.split(session.run(Packed.windows(features, rows)), length[rows])
        for row, part in zip(rows, parts, strict=True):
            for kept, values in zip(found, part, strict=True):
                kept[row] = values
    return found


def onnx_runner(model: Path, batch: Packed, layout: str) -> Runner:
    """Intermediate outputs of an ONNX file on ONNX Runtime's CPU."""

    def run(names: list[str]) -> Values:
        with marked(model, names) as copy:
            file = OnnxFile(copy, layout)
        return dict(zip(names, file.run(batch), strict=True))

    return run


class OnnxFile:
    """An ONNX file on ONNX Runtime's CPU."""

    def __init__(self, path: Path, layout: str):
        self._session = cpu_session(path)
        self._layout = layout
        self._inputs = {item.name for item in self._session.get_inputs()}
        self._whole = per_sequence(onnx.load(str(path), load_external_data=False))

    def run(self, batch: Packed) -> list[np.ndarray]:
        """All outputs in the file's order, [T, ...] each."""
        inputs, mask = inputs_of(batch, self._layout)
        arrays = self._session.run(None, {name: array for name, array in inputs.items() if name in self._inputs})
        return [
            real(np.asarray(array), None if item.name in self._whole else mask)
            for item, array in zip(self._session.get_outputs(), arrays, strict=True)
        ]

    def logits(self, features: Windows, title: str) -> Logits:
        """Of each output an array for every window of some features, in small batches."""
        names = [item.name for item in self._session.get_outputs()]
        found: tuple[list, ...] = tuple([] for _ in names)
        groups = cut(features.length, ONNX_TOKENS, ONNX_WINDOWS)
        for rows in tqdm(groups, title, unit="batch", leave=False, mininterval=1.0):
            batch = Packed.windows(features, rows)
            for name, side, array in zip(names, found, self.run(batch), strict=True):
                side.extend(array if name in self._whole else np.split(array, batch.cu_seqlens[1:-1]))
        return found


def cpu_session(path: Path) -> Any:
    """ONNX Runtime with a thread for each core that this process may use. By itself it has one for each of the machine,
    and where a container leaves one core of 16, that is 12 times as slow."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = gpu.cores()
    options.log_severity_level = 3  # errors; that it computes float16 in float32 is no news
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextmanager
def marked(model: Path, names: list[str]) -> Iterator[Path]:
    """`mark`'s copy for as long as it is needed."""
    copy = mark(model, names)
    try:
        yield copy
    finally:
        copy.unlink()


def per_sequence(model: onnx.ModelProto) -> frozenset[str]:
    """Outputs of a padded graph, marked ones too, that have a row a sequence: no token is padding there."""
    kept = {entry.value for entry in model.metadata_props if entry.key == WHOLE}
    names = {name for text in kept for name in text.split(",") if name}
    return frozenset(names | {f"marked.{HEAD}{name}" for name in names})


def inputs_of(batch: Packed, layout: str) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """A network's inputs, and for the padded layout where its real tokens are: bool [B, S]."""
    if layout == "packed":
        return {name: getattr(batch, name) for name in (*ROWS, "cu_seqlens")}, None
    return padded(batch)


def padded(batch: Packed) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """token_ids, segment_ids, padding_mask int32 [B, S], and that mask as bool."""
    mask = batch.mask(len(batch), int(batch.lengths.max()))
    inputs = {"padding_mask": mask.astype(np.int32)}
    for name in ("token_ids", "segment_ids"):
        inputs[name] = np.zeros(mask.shape, np.int32)
        inputs[name][mask] = getattr(batch, name)
    return inputs, mask


def real(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """[T, ...] from [T, ...], or from [B, S, ...] without its padding."""
    return array if mask is None else array[mask]
