"""all-MiniLM-L6-v2 as an engine gives the sentence embeddings that transformers gives; pooling in both layouts."""

import json
from dataclasses import replace
from pathlib import Path

import export_kit as kit
import numpy as np
import pytest

from configs.errors import UserError
from export import graph
from export.runners import inputs_of
from heads import find
from model.config import BertConfig
from scripts.make_golden_tasks import SENTENCES
from serve.embedder import Embedder

GOLDEN = Path(__file__).parent / "golden" / "embed_minilm.json"


def test_minilm_gives_the_reference_sentence_embeddings(tmp_path, minilm):
    out = tmp_path / "engine"
    kit.export(
        "--run", minilm, "--task", "embed", "--out", out, "--target", "none", "--precision", "float32", "--no-verify"
    )
    with Embedder(out, runtime="onnxruntime") as embedder:
        vectors = embedder.embed(SENTENCES)
    expected = np.array(json.loads(GOLDEN.read_text())["cosines"])
    assert np.abs(vectors @ vectors.T - expected).max() < 1e-5  # 1e-3 is asked for


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_both_layouts_pool_what_keras_pools(pooling):
    """Packed with a tail and with sequences of no token, as a captured graph has them; padded with a row of padding."""
    import tensorflow as tf

    from model.heads import HeadModel

    sizes = replace(BertConfig(vocabulary=400, hidden=24, layers=1, heads=2, ffn=20, positions=64))
    head = find("embed", (), {"pooling": pooling})
    tensors = {name: value for name, value in kit.tensors(sizes).items() if not name.startswith("span")}
    model = HeadModel(head, sizes)
    for name, variable in model.names().items():
        variable.assign(tensors[name])
    batch = kit.batch(sizes)
    inputs, _ = inputs_of(batch, "padded")
    expected = model(*(tf.constant(inputs[name]) for name in ("token_ids", "segment_ids", "padding_mask")))[0].numpy()
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-5)
    for layout in ("packed", "padded"):
        network = graph.build(tensors, sizes, precision="float32", layout=layout, head=head)
        if layout == "padded":
            empty = {name: np.concatenate([array, np.zeros_like(array[:1])]) for name, array in inputs.items()}
        else:
            empty = kit.packed_inputs(batch)
            empty["cu_seqlens"] = np.append(empty["cu_seqlens"], [batch.tokens] * 2).astype(np.int32)
            full = kit.packed_inputs(batch, tail=0) | {"cu_seqlens": empty["cu_seqlens"]}  # they begin past the end
            assert np.isfinite(kit.compute(network, full)[0]).all()
        found = kit.compute(network, empty)[0]
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[: len(batch)], expected, atol=1e-5)


def test_a_runs_encoder_serves_tasks_without_a_head_and_no_others(tmp_path):
    kit.run(tmp_path / "run")
    how = ["--run", tmp_path / "run", "--target", "none", "--precision", "float32", "--no-verify"]
    kit.export(*how, "--task", "embed", "--out", tmp_path / "engine")
    with Embedder(tmp_path / "engine") as embedder:
        assert embedder.embed(["word1 word2"]).shape == (1, kit.SIZES.hidden)
    with pytest.raises(UserError, match=r"lacks pooler.kernel.*: it has no head for 'glue/sst2'; fine-tune it"):
        kit.export(*how, "--task", "glue/sst2", "--out", tmp_path / "other")
    with pytest.raises(UserError, match=r"has no model\.safetensors: --task is for a Hugging Face folder"):
        kit.export("--run", tmp_path, "--task", "embed", "--out", tmp_path / "engine")


def test_pooling_by_another_name_is_refused():
    with pytest.raises(UserError, match="pooling 'max' is not known; there are mean, cls"):
        find("embed", (), {"pooling": "max"})
