"""Back to Hugging Face: the names that transformers expects, and every bit as it was when read back."""

import json
from dataclasses import replace

import export_kit as kit
import numpy as np
import pytest
from safetensors import safe_open

from data.tokenize import Tokenizer
from export import checkpoint, graph, hf
from export.runners import padded
from model import weights

SIZES = kit.SIZES


def published(folder, **changes):
    """A run folder's checkpoint and the folder written from it."""
    read = checkpoint.read(kit.run(folder / "run", replace(SIZES, **changes)))
    (folder / "hf").mkdir()
    hf.write(folder / "hf", read)
    return read, folder / "hf"


def expected_names(layers: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of transformers' BertForQuestionAnswering, written out by hand; it has no pooler."""
    width, inner = SIZES.hidden, SIZES.ffn
    found = {
        "bert.embeddings.word_embeddings.weight": (SIZES.vocabulary, width),
        "bert.embeddings.position_embeddings.weight": (SIZES.positions, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        "bert.embeddings.LayerNorm.weight": (width,),
        "bert.embeddings.LayerNorm.bias": (width,),
        "qa_outputs.weight": (2, width),
        "qa_outputs.bias": (2,),
    }
    for index in range(layers):
        dense = {
            "attention.self.query": (width, width), "attention.self.key": (width, width),
            "attention.self.value": (width, width), "attention.output.dense": (width, width),
            "intermediate.dense": (inner, width), "output.dense": (width, inner),
        }  # fmt: skip
        for name, shape in dense.items():
            found[f"bert.encoder.layer.{index}.{name}.weight"] = shape
            found[f"bert.encoder.layer.{index}.{name}.bias"] = shape[:1]
        for name in ("attention.output", "output"):
            found[f"bert.encoder.layer.{index}.{name}.LayerNorm.weight"] = (width,)
            found[f"bert.encoder.layer.{index}.{name}.LayerNorm.bias"] = (width,)
    return found


def test_names_and_shapes_are_those_of_transformers(tmp_path):
    _, folder = published(tmp_path)
    with safe_open(folder / "model.safetensors", "numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
        assert file.metadata() == {"format": "pt"}
    assert shapes == expected_names(SIZES.layers)


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_what_is_written_is_read_back_to_the_bit_with_head_sizes_and_tokeniser(tmp_path, gelu):
    read, folder = published(tmp_path, gelu=gelu, layer_norm_epsilon=1e-7, dropout=0.2)
    back = weights.load(str(folder), kit.SPAN)
    assert back.config == read.config
    assert back.left_over == []
    assert back.tensors.keys() == read.tensors.keys()
    for name, tensor in read.tensors.items():
        np.testing.assert_array_equal(back.tensors[name], tensor, err_msg=name)
    assert Tokenizer.from_config(back.tokenizer, folder / "vocab.txt").config() == read.tokenizer.config()
    assert (folder / "vocab.txt").read_bytes() == read.tokenizer.vocab_file.read_bytes()


def test_the_tokeniser_of_a_cased_run_stays_cased(tmp_path):
    run = kit.run(tmp_path / "run", tokenizer={"lowercase": False, "strip_accents": True, "chinese": False})
    stated = hf.tokenizer_config(checkpoint.read(run))
    settings = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "model_max_length")
    assert [stated[name] for name in settings] == [False, True, False, SIZES.positions]
    assert stated["tokenizer_class"] == "BertTokenizer"


def test_config_and_special_tokens_say_what_transformers_asks_for(tmp_path):
    _, folder = published(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == sorted(hf.FILES)
    stated = json.loads((folder / "config.json").read_text())
    assert stated["architectures"] == ["BertForQuestionAnswering"]
    assert (stated["model_type"], stated["hidden_act"], stated["pad_token_id"]) == ("bert", "gelu", 0)
    special = json.loads((folder / "special_tokens_map.json").read_text())
    assert set(special.values()) <= set((folder / "vocab.txt").read_text().split("\n"))


@pytest.mark.gpu
@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_transformers_computes_the_same_logits(tmp_path, gelu):
    """On the GPU machine because torch and transformers are there, not here."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer, BertForQuestionAnswering  # pyright: ignore[reportMissingImports]

    read, folder = published(tmp_path, gelu=gelu)
    model, report = BertForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())  # nothing missing, unexpected, mismatched
    inputs, mask = padded(kit.batch())
    with torch.no_grad():
        theirs = model.eval()(
            input_ids=torch.tensor(inputs["token_ids"]).long(),
            token_type_ids=torch.tensor(inputs["segment_ids"]).long(),
            attention_mask=torch.tensor(inputs["padding_mask"]).long(),
        )
    ours = kit.compute(graph.build(read.tensors, read.config, precision="float32", layout="padded"), inputs)
    for one, other in zip(ours, (theirs.start_logits, theirs.end_logits), strict=True):
        np.testing.assert_allclose(one[mask], other.numpy()[mask], atol=1e-4, rtol=0)
    text = "What was word7, Ada?"
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    assert ids == read.tokenizer.encode_batch([text])[0].ids
