"""An engine's encoder as a Keras layer: what Keras computes, saved and read again, and handed over without a copy."""

import ctypes
from dataclasses import replace

import export_kit as kit
import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_cuda import FakeCuda

from configs.errors import UserError
from export import checkpoint
from export.keras_layer import EngineEncoder, address_of
from export.runners import Keras, inputs_of
from serve import manifest as manifests
from serve.tensorrt_session import TensorrtSession

NAMES = ("token_ids", "segment_ids", "padding_mask")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run, and engines of its encoder in both layouts."""
    folder = tmp_path_factory.mktemp("layer")
    kit.run(folder / "run")
    (folder / "texts.txt").write_text("word1 word2\n\nword3 word4 word5\n", encoding="utf-8")
    for layout in ("packed", "padded"):
        kit.export(
            "--run", folder / "run", "--task", "encode", "--out", folder / layout, "--layout", layout,
            "--dev", folder / "texts.txt", "--target", "none", "--precision", "float32", "--max-batch", "8",
        )  # fmt: skip
    return folder


@pytest.fixture
def ids():
    inputs, _ = inputs_of(kit.batch(), "padded")
    return [tf.constant(inputs[name]) for name in NAMES]


def expected(home, ids) -> np.ndarray:
    encoder = Keras(checkpoint.read(home / "run")).model.encoder
    return (encoder(*ids).output * tf.cast(ids[2], tf.float32)[..., None]).numpy()


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_layer_gives_what_the_encoder_gives_and_zeros_at_padding(home, ids, layout):
    found = EngineEncoder(str(home / layout), runtime="onnxruntime")(*ids)
    np.testing.assert_allclose(found.numpy(), expected(home, ids), atol=1e-4)


def test_a_larger_model_is_saved_and_read_again_with_the_engine_in_it(home, ids, tmp_path):
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in NAMES]
    encoded = EngineEncoder(str(home / "packed"), runtime="onnxruntime", name="engine")(*inputs)
    assert encoded.shape == (None, None, kit.SIZES.hidden)
    model = keras.Model(inputs, keras.layers.Dense(3, name="own")(encoded[:, 0]))
    assert [weight.path for weight in model.trainable_variables] == ["own/kernel", "own/bias"]
    before = model.predict([array.numpy() for array in ids], verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict([array.numpy() for array in ids], verbose=0), before)
    (home / "packed").rename(home / "elsewhere")
    try:
        with pytest.raises(Exception, match="no engine folder at"):
            keras.saving.load_model(tmp_path / "model.keras")
    finally:
        (home / "elsewhere").rename(home / "packed")


class Plan:
    """A made-up plan, its own one context, whose memory is the host's: a token's vector is its id in every place."""

    def __init__(self, cuda: FakeCuda):
        self.cuda, self.given, self.contexts = cuda, [], [self]

    def prepare(self, bucket, inputs, outputs):
        self.bucket, self.inputs = bucket, inputs

    def place(self, addresses):
        self.given.append(addresses)

    def execute(self, stream):
        (word, shape), (_, out) = self.bucket.inputs["token_ids"], self.bucket.outputs["encoded"]
        address, size = self.given[-1]["encoded"], int(np.prod(out))
        bucket_inputs = self.inputs

        def work():
            ids = self.cuda.block(bucket_inputs + 4 * word, 4 * int(np.prod(shape))).view(np.int32).reshape(shape)
            memory = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (size,)).reshape(out)
            memory[:] = ids[..., None]

        self.cuda.put(stream, work)

    def save_cache(self):
        pass


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_plan_writes_into_tensorflows_own_memory(home, ids, layout, monkeypatch):
    """The address that DLPack tells is the one that the plan is given; nothing is copied out by the session."""
    cuda = FakeCuda()
    plan = Plan(cuda)
    session = TensorrtSession(manifests.read(home / layout), plan, cuda)
    layer = EngineEncoder(str(home / layout), session=session)
    with pytest.raises(UserError, match="runs on a GPU that TensorFlow does not see"):
        layer._encode(*ids)
    session.memory = 1  # DLPack's number of the host's memory, where this plan lives
    monkeypatch.setattr(cuda, "copy_out", None)
    for _ in range(3):
        found = layer(*ids).numpy()
        np.testing.assert_array_equal(found, np.where(ids[2], ids[0], 0)[..., None] * np.ones(kit.SIZES.hidden, "f4"))
    assert len(plan.given) == 3
    session.close()
    assert not [kind for kind, _ in cuda.alive if kind != "graph"]


def test_what_cannot_be_encoded_is_said(home, ids, tmp_path):
    layer = EngineEncoder(str(home / "packed"), runtime="onnxruntime")
    with pytest.raises(UserError, match="a row of padding_mask is empty"):
        layer._encode(ids[0], ids[1], ids[2] * 0)
    with pytest.raises(UserError, match="padding before real tokens"):
        layer._encode(ids[0], ids[1], ids[2][:, ::-1])
    with pytest.raises(UserError, match="10 texts at once, the engine takes up to 8; give smaller batches"):
        layer._encode(*(tf.concat([x, x], 0) for x in ids))
    kit.export("--run", home / "run", "--out", tmp_path / "span", "--target", "none", "--no-verify")
    with pytest.raises(UserError, match=r"is an engine for --task squad; the layer needs .* --task encode"):
        EngineEncoder(str(tmp_path / "span"))
    with pytest.raises(UserError, match="float32"):
        address_of(tf.zeros(3, tf.float16))
    assert replace(kit.SIZES).hidden == layer.hidden
