"""Outputs with a row a sequence on their way out of a session; engine.json of a task that does not fit its head."""

import numpy as np
import onnxruntime as ort
import pytest
import serve_kit

from configs.errors import UserError
from export import files, graph
from export.runners import OnnxFile
from heads import find
from serve import manifest as manifests
from serve.buckets import Buckets
from serve.session import Session

TASK = {"task": "csv", "labels": ["a", "b", "c"]}


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_bucket_gives_back_the_rows_of_its_own_sequences(tmp_path, layout):
    manifest = manifests.read(serve_kit.write(tmp_path / "engine", layout, **TASK))
    batch = serve_kit.batch(3, 7, 5)
    bucket = Buckets(manifest).of(batch)
    word, shape = bucket.outputs["logits"]
    assert shape == (4, 3)  # three sequences, rounded up
    block = np.zeros(bucket.output_words, np.float32)
    block[word : word + 12] = np.arange(12)
    (found,) = bucket.read(batch, block)
    block[:] = -1  # the next batch
    np.testing.assert_array_equal(found, np.arange(9).reshape(3, 3))


class Both(Session):
    runtime, why, device = "onnxruntime", "as pretended", "a CPU"

    def _compute(self, batch):
        return np.arange(len(batch) * 3, dtype=np.float32).reshape(-1, 3), np.arange(batch.tokens, dtype=np.float32)


def test_a_batch_is_split_by_sequences_and_by_tokens(tmp_path):
    manifest = manifests.read(serve_kit.write(tmp_path / "engine", **TASK))
    session, batch = Both(manifest), serve_kit.batch(3, 7, 5)
    manifest.__dict__["outputs"] = (manifest.outputs[0], find("squad").outputs(2)[0])
    parts = session.split(session.run(batch), batch.lengths)
    assert [row.tolist() for row, _ in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert [len(tokens) for _, tokens in parts] == [3, 7, 5]
    assert parts[1][1][0] == 3


@pytest.mark.parametrize("layout", graph.LAYOUTS)
def test_marked_outputs_of_a_sequence_are_not_taken_for_tokens(tmp_path, layout):
    """As many classes as a padded batch is long: shapes alone could not tell [B, C] from [B, S]."""
    import export_kit as kit

    batch = kit.batch()
    head = find("csv", [str(place) for place in range(max(kit.LENGTHS))])
    random = np.random.default_rng(0)
    own = {name: random.normal(size=shape).astype(np.float32) for name, shape in head.shapes(kit.SIZES).items()}
    model = graph.build(kit.tensors(kit.SIZES) | own, kit.SIZES, precision="float32", layout=layout, head=head)
    files.save(model, tmp_path / "model.onnx")
    (found,) = OnnxFile(tmp_path / "model.onnx", layout).run(batch)
    assert found.shape == (len(batch), 64)
    assert ort.InferenceSession(str(tmp_path / "model.onnx")).get_outputs()[0].name == "logits"


@pytest.mark.parametrize(("changes", "said"), [
    ({"task": "sst3"}, "'task' is 'sst3'; needed is .*'squad'"),
    ({"task": "csv", "labels": ["a", "a"]}, r"'labels' is \['a', 'a'\]; needed is names that differ"),
    ({"task": "csv"}, "--task csv has no labels yet"),
    ({"task": "embed", "head": {"pooling": "max"}}, "pooling 'max' is not known"),
    ({"task": "embed", "head": {"pooling": ["mean"]}}, "head: 'pooling' is .*; needed is text or a number"),
    ({"head": []}, "'head' is .*; needed is an object"),
])  # fmt: skip
def test_an_engine_whose_task_does_not_fit_its_head_is_refused_when_it_is_opened(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        manifests.read(serve_kit.write(tmp_path / "engine", **changes))


@pytest.mark.parametrize("layout", graph.LAYOUTS)
@pytest.mark.parametrize(("task", "settings"), [
    ("csv", {}), ("csv/number", {}), ("conll", {}), ("embed", {"pooling": "mean"}), ("embed", {"pooling": "cls"}),
    ("encode", {}),
])  # fmt: skip
def test_tensorrt_builds_a_plan_of_every_head_for_old_and_new_gpus(tmp_path, task, settings, layout):
    """With all plugins; for compute capability 7.5, too, which has no product in float32."""
    import export_kit as kit

    import plugins
    from export import engine
    from plugins import tensorrt_flavour

    profiles = {"packed": manifests.Profile(manifests.Range(1, 4, 8), manifests.Range(1, 64, 512), None),
                "padded": manifests.Profile(manifests.Range(1, 4, 8), None, manifests.Range(1, 32, 64))}  # fmt: skip
    head, names = find(task, ["a", "b", "c"] if task in ("csv", "conll") else [], settings), tuple(plugins.PLUGINS)
    random, fused = np.random.default_rng(0), graph.fuses(names)
    own = {name: random.normal(size=shape).astype(np.float32) for name, shape in head.shapes(kit.SIZES).items()}
    tensors = kit.tensors(kit.SIZES) | own
    model = graph.build(tensors, kit.SIZES, precision="float16", layout=layout, head=head, fused=fused)
    files.save(model, tmp_path / "model.onnx")
    plan = engine.Plan(names, (75, 89), profiles[layout])
    expected = graph.expected_nodes(kit.SIZES, fused=fused)
    trt = tensorrt_flavour.load("tensorrt_rtx")
    layers = engine.build(trt, tmp_path / "model.onnx", tmp_path / "model.plan", plan, expected)
    assert layers == expected
