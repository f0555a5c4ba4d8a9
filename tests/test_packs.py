"""Gradients on their way between devices: few tensors, no bit lost."""

import math
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from scripts import bench_train_step
from scripts.bench_train_step import Variant
from train import packs
from train.hardware import Hardware

SHAPES = ((3,), (200, 100), (), (2, 5), (130, 130), (7,))


@pytest.mark.parametrize("jit", [False, True])
def test_packed_tensors_come_back_as_they_were_and_those_of_float16_travel_as_it(jit):
    random = np.random.default_rng(0)
    given = [tf.constant(random.normal(size=shape), tf.float32) for shape in SHAPES]
    layouts = []

    @tf.function(jit_compile=jit, autograph=False)
    def there(tensors):
        # The first three are products in float16 that were cast, as kernels' gradients are.
        widened = [tf.cast(tf.cast(tensor, tf.float16), tf.float32) for tensor in tensors[:3]]
        flats, layout = packs.pack([*widened, *tensors[3:]])
        layouts.append(layout)
        return flats

    flats = there(given)
    assert [(flat.dtype, flat.shape) for flat in flats] == [(tf.float16, (20004,)), (tf.float32, (16917,))]
    assert layouts[0].flats == ((1, 0, 2), (4, 3, 5))  # the large one first
    back = tf.function(packs.unpack, jit_compile=jit, autograph=False)(flats, layouts[0])
    for place, (got, want) in enumerate(zip(back, given, strict=True)):
        want = want.numpy().astype(np.float16 if place < 3 else np.float32).astype(np.float32)
        assert got.dtype == tf.float32
        np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize(("precision", "types"), [("float32", ["float32"]), ("float16", ["float16", "float32"])])
def test_kernels_of_a_model_in_float16_travel_in_half_the_bytes(precision, types, monkeypatch):
    small = replace(bench_train_step.NAMED["bert-tiny"], vocabulary=1100, hidden=16, layers=1, ffn=32)
    monkeypatch.setitem(bench_train_step.NAMED, "bert-tiny", small)
    variant = Variant("bert-tiny", precision, xla=False, batch=2, tokens=16)
    machine = Hardware(False, None, 0, 1, True)
    step, _ = bench_train_step.build(variant, machine)
    layouts = []

    @tf.function(autograph=False)
    def there(batch):
        gradients, report = step._backward_body(batch, tf.constant([0, 1], tf.int64), 0)
        flats, layout = packs.pack([*gradients, report])
        layouts.append(layout)
        return flats

    batch = bench_train_step.on_devices(bench_train_step.random_rows(variant), machine)
    flats = there.get_concrete_function(batch.apart()).outputs
    assert [flat.dtype.name for flat in flats] == types
    names = [*step.optimizer.weights, "report"]
    half = {names[place] for place in layouts[0].flats[0]} if "float16" in types else set()
    products = {name for name in names if name.startswith("layers") and name.endswith(".kernel")}
    assert len(products) == 4
    assert half >= products if half else precision == "float32"
    assert not any(name.startswith("embeddings") or name == "report" for name in half)
    assert sum(math.prod(shape) for shape in layouts[0].shapes) == sum(flat.shape[0] for flat in flats)
