"""An engine inside TensorFlow: a Keras layer that runs an engine's encoder in a larger model, for inference.

    ids = [keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "segment_ids", "padding_mask")]
    encoded = EngineEncoder("engines/encoder")(*ids)                    # float32 [B, S, H]
    model = keras.Model(ids, keras.layers.Dense(3)(encoded[:, 0]))
    model.save("model.keras"); keras.saving.load_model("model.keras")   # the layer keeps the engine's folder, not it

The engine is one of `export.py --task encode`. On a GPU its plan writes the vectors into memory that TensorFlow owns,
whose address DLPack tells: they never leave the GPU. The ids, a few bytes a token, are on the host, where TensorFlow
keeps int32, and are copied in by the session. On a CPU it is ONNX Runtime, and tensors are read where they lie.

No gradient flows through it, and it runs in the Python process that built it: a model with it is no SavedModel.
"""

import ctypes
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from configs.errors import UserError
from serve.packed import Packed
from serve.session import Session
from serve.tensorrt_session import TensorrtSession

TASK = "encode"  # the head whose engines this layer takes
FLOAT32 = (2, 32, 1)  # DLPack's code, bits and lanes


class _DLTensor(ctypes.Structure):
    """https://dmlc.github.io/dlpack/latest/c_api.html, the first member of DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


def address_of(tensor: tf.Tensor) -> tuple[int, int]:
    """(address, DLPack's device) of an eager float32 tensor's memory, which lives as long as the tensor does.

    Raises: UserError where it is of another type.
    """
    capsule = tf.experimental.dlpack.to_dlpack(tensor)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    found = ctypes.cast(pointer(capsule, b"dltensor"), ctypes.POINTER(_DLTensor)).contents
    if (found.code, found.bits, found.lanes) != FLOAT32:
        raise UserError(f"a tensor of {tensor.dtype.name} was given to be written into; needed is float32")
    return found.data + found.byte_offset, found.device


@keras.saving.register_keras_serializable("retort")
class EngineEncoder(keras.layers.Layer):
    """Encoder output float32 [B, S, H] of token_ids, segment_ids, padding_mask int32 [B, S]; 0 at padding.

    Args:
        engine: folder of an engine of `--task encode`.
        runtime: as `Session.open` has it: auto, tensorrt, onnxruntime.
        session: an open session of that folder, to be used instead of a new one.
    Raises: UserError where the folder is damaged, is for another task, or the runtime asked for does not fit.
    """

    def __init__(self, engine: str, runtime: str = "auto", *, session: Session | None = None, **more: Any):
        super().__init__(**more | {"dtype": "float32", "trainable": False})
        self.engine, self.runtime = str(engine), runtime
        self.session = session or Session.open(self.engine, runtime)
        manifest = self.session.manifest
        if manifest.task != TASK:
            raise UserError(
                f"{self.engine} is an engine for --task {manifest.task}; the layer needs one of the encoder alone: "
                f"python export.py --run RUN --task {TASK} --out FOLDER"
            )
        self.hidden = manifest.sizes["hidden"]
        self.supports_jit = False  # XLA compiles no Python
        self.built = True

    def call(self, token_ids, segment_ids, padding_mask):
        encoded = tf.py_function(self._encode, [token_ids, segment_ids, padding_mask], tf.float32)
        encoded.set_shape((token_ids.shape[0], token_ids.shape[1], self.hidden))
        return tf.stop_gradient(encoded)

    def compute_output_shape(self, token_ids, *_):
        return (*token_ids, self.hidden)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"engine": self.engine, "runtime": self.runtime}

    def _encode(self, token_ids, segment_ids, padding_mask) -> tf.Tensor:
        mask = np.asarray(padding_mask.numpy(), bool)
        shape = (*mask.shape, self.hidden)
        if not mask.any(axis=1).all():
            raise UserError("a row of padding_mask is empty; every text has its [CLS] and [SEP] at least")
        if (np.diff(mask.astype(np.int8), axis=1) > 0).any():
            raise UserError("padding_mask has padding before real tokens; a row's real tokens stand first")
        rows = (np.asarray(ids.numpy(), np.int32) for ids in (token_ids, segment_ids))
        batch = Packed.of(*([row[real] for row, real in zip(ids, mask, strict=True)] for ids in rows))
        profile = self.session.manifest.profile
        if len(mask) > profile.batch.most:
            raise UserError(
                f"{len(mask)} texts at once, the engine takes up to {profile.batch.most}; give smaller batches, or "
                "export with --max-batch"
            )
        if isinstance(self.session, TensorrtSession):
            tokens = self._on_device(self.session, batch)
        else:
            tokens = tf.convert_to_tensor(self.session.run(batch)[0])
        return tf.scatter_nd(np.argwhere(mask).astype(np.int32), tokens, shape)

    def _on_device(self, session: TensorrtSession, batch: Packed) -> tf.Tensor:
        """float32 [T, H], written by the plan into TensorFlow's own memory."""
        (name, shape) = next(iter(session.output_shapes(batch).items()))  # sizes are rounded up
        vectors = tf.zeros(shape)
        tf.test.experimental.sync_devices()  # the zeros are there before the plan writes on a stream of its own
        address, device = address_of(vectors)
        if device != session.memory:
            raise UserError(
                f"the plan of {self.engine} runs on a GPU that TensorFlow does not see; install tensorflow[and-cuda], "
                "or open the layer with runtime onnxruntime"
            )
        session.run_into(batch, {name: address})
        if len(shape) == 2:
            return vectors[: batch.tokens]
        return tf.boolean_mask(vectors, batch.mask(*shape[:2]))
