"""Published weights: three layouts, one meaning; what is missing, unknown or of another shape is refused by name."""

import json

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest

from configs.errors import UserError
from heads import default
from model import weights
from scripts.make_golden import CASES, SIZES, random_tensors, write_folder

SPAN = default()

CONFIG = SIZES | CASES["erf"]
CHINESE = SIZES | {  # bert_config.json of chinese_L-12_H-768_A-12, but for the smaller sizes
    "attention_probs_dropout_prob": 0.1, "directionality": "bidi", "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02, "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128, "pooler_type": "first_token_transform", "vocab_size": 21128,
}  # fmt: skip
QUERY, KEY = (f"encoder.layer.1.attention.self.{name}.weight" for name in ("query", "key"))
HEADS = {"qa_outputs.weight": "cls/squad/output_weights", "qa_outputs.bias": "cls/squad/output_bias"}


def without_head(tensors):
    return {name: value for name, value in tensors.items() if not name.startswith("qa_outputs")}


def folder_of(tmp_path, tensors=None, config=CONFIG, name="published"):
    return write_folder(tmp_path / name, config, random_tensors() if tensors is None else tensors)


def refused(source) -> str:
    with pytest.raises(UserError) as error:
        weights.load(str(source), SPAN)
    return str(error.value)


def google_names(tensors):
    """Hugging Face's tensors as google-research/bert names and turns them."""
    theirs = {}
    for name, value in tensors.items():
        if name in HEADS:
            theirs[HEADS[name]] = value  # [2, H] there, too
            continue
        *path, last = name.replace("encoder.layer.", "encoder.layer_").split(".")
        if path[-1] == "LayerNorm":
            last = {"weight": "gamma", "bias": "beta"}[last]
        elif path[-1].endswith("_embeddings"):
            *path, last = path
        elif last == "weight":
            last, value = "kernel", value.T
        theirs["/".join(["bert", *path, last])] = np.ascontiguousarray(value)
    return theirs


def pre_training_heads(rows, wide=48):
    """What a published checkpoint has beside the encoder."""
    shapes = {
        "predictions/output_bias": (rows,), "predictions/transform/dense/kernel": (wide, wide),
        "predictions/transform/dense/bias": (wide,), "predictions/transform/LayerNorm/gamma": (wide,),
        "predictions/transform/LayerNorm/beta": (wide,), "seq_relationship/output_weights": (2, wide),
        "seq_relationship/output_bias": (2,),
    }  # fmt: skip
    return {f"cls/{name}": np.full(shape, 9, np.float32) for name, shape in shapes.items()}


def write_google(folder, tensors, config=CHINESE, name="bert_model.ckpt"):
    """A checkpoint as TensorFlow 1's Saver writes it, with bert_config.json."""
    import tensorflow as tf

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bert_config.json").write_text(json.dumps(config), encoding="utf-8")
    names, values = list(tensors), list(tensors.values())
    tf.raw_ops.SaveV2(
        prefix=str(folder / name), tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
    )
    return folder


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def assert_used_exactly_once(tensors, published):
    """Every number of the source is in our tensors once, or in a tensor that is listed as left over."""
    used = [value for name, value in tensors.items() if name not in published.left_over]
    assert set(published.left_over) <= tensors.keys()
    theirs, ours = (np.sort(np.concatenate([x.ravel() for x in part])) for part in (used, published.tensors.values()))
    np.testing.assert_array_equal(theirs, ours)
    assert {value.dtype for value in published.tensors.values()} == {np.dtype("float32")}


def test_kernels_are_turned_and_query_key_and_value_stand_side_by_side(tmp_path):
    tensors = random_tensors()
    ours = weights.load(str(folder_of(tmp_path, tensors)), SPAN).tensors
    three = [tensors[f"encoder.layer.2.attention.self.{name}.weight"] for name in ("query", "key", "value")]
    for index, kernel in enumerate(three):
        np.testing.assert_array_equal(ours["layers.2.attention.qkv.kernel"][:, 48 * index : 48 * (index + 1)], kernel.T)
    inner = tensors["encoder.layer.0.intermediate.dense.weight"]
    np.testing.assert_array_equal(ours["layers.0.ffn.in.kernel"], inner.T)
    np.testing.assert_array_equal(ours["span.kernel"], tensors["qa_outputs.weight"].T)
    np.testing.assert_array_equal(ours["embeddings.norm.offset"], tensors["embeddings.LayerNorm.bias"])


@pytest.mark.parametrize("head", [True, False])
def test_every_tensor_of_a_hugging_face_folder_is_used_once_or_listed(tmp_path, head):
    tensors = {f"bert.{name}" if "qa_" not in name else name: value for name, value in random_tensors().items()}
    tensors = tensors if head else without_head(tensors)
    tensors |= {"bert.embeddings.position_ids": np.arange(32)[None], "cls.predictions.bias": np.zeros(60, np.float32)}
    published = weights.load(str(folder_of(tmp_path, tensors)), SPAN)
    assert_used_exactly_once(tensors, published)
    assert published.left_over == [
        "bert.embeddings.position_ids", "bert.pooler.dense.bias", "bert.pooler.dense.weight", "cls.predictions.bias",
    ]  # fmt: skip
    assert ("span.kernel" in published.tensors) == head


def test_a_google_checkpoint_holds_what_the_same_weights_hold_elsewhere(tmp_path):
    tensors = without_head(random_tensors(CHINESE))
    named = google_names(tensors)
    slots = {f"{name}/adam_{slot}": value * 0 for name, value in named.items() for slot in "mv"}
    extra = pre_training_heads(21128) | slots | {"global_step": np.int64(1000)}
    google = weights.load(str(write_google(tmp_path / "chinese_L-12_H-768_A-12", named | extra)), SPAN)
    other = weights.load(str(folder_of(tmp_path, tensors, CHINESE | {"hidden_act": "gelu_new"})), SPAN)
    assert_same(google.tensors, other.tensors)
    assert_used_exactly_once(named | extra, google)
    assert set(google.left_over) == extra.keys() | {"bert/pooler/dense/kernel", "bert/pooler/dense/bias"}
    assert google.config == other.config
    assert (google.config.vocabulary, google.config.gelu, google.config.layer_norm_epsilon) == (21128, "tanh", 1e-12)


def test_a_google_checkpoint_fine_tuned_on_squad_brings_its_head(tmp_path):
    config = SIZES | {"hidden_act": "gelu"}
    folder = write_google(tmp_path, google_names(random_tensors()), config, "model.ckpt-21899")
    assert_same(weights.load(str(folder), SPAN).tensors, weights.load(str(folder_of(tmp_path)), SPAN).tensors)


@pytest.mark.parametrize(("name", "lowercase"), [
    ("uncased_L-12_H-768_A-12", True), ("cased_L-12_H-768_A-12", False), ("multi_cased_L-12_H-768_A-12", False),
    ("chinese_L-12_H-768_A-12", True), ("wwm_uncased_L-24_H-1024_A-16", True),
])  # fmt: skip
def test_case_is_told_by_the_published_folder_name(tmp_path, monkeypatch, name, lowercase):
    folder = write_google(tmp_path / name, google_names(random_tensors()), SIZES)
    monkeypatch.chdir(folder)
    for source in (folder, "."):
        tokenizer = weights.load(str(source), SPAN).tokenizer
        assert tokenizer == {"lowercase": lowercase, "strip_accents": None, "chinese": True}


def break_data(folder, keep):
    data = next(folder.glob("*.data-*"))
    if keep:
        data.write_bytes(data.read_bytes()[:keep])
    else:
        data.unlink()


@pytest.mark.parametrize(("broken", "message"), [
    (lambda f: break_data(f, 0), "bert_model.ckpt cannot be read as a TensorFlow checkpoint"),
    (lambda f: break_data(f, 5000), "bert_model.ckpt cannot be read as a TensorFlow checkpoint"),
    (lambda f: (f / "bert_model.ckpt.index").write_bytes(b"nothing"), "cannot be read as a TensorFlow checkpoint"),
    (lambda f: (f / "model.ckpt-7.index").write_bytes(b""), "holds 2 checkpoints (bert_model.ckpt, model.ckpt-7)"),
    (lambda f: (f / "bert_config.json").write_text(json.dumps(SIZES | {"hidden_act": "relu"})), "activation 'relu'"),
    (lambda f: (f / "bert_config.json").write_text(json.dumps(SIZES | {"num_hidden_layers": 4})),
     "16 tensors are missing (bert/encoder/layer_3/attention/output/LayerNorm/beta, "),
    (lambda f: (f / "bert_config.json").write_text(json.dumps(SIZES | {"hidden_size": 64})), "has shape (60, 48)"),
], ids=["no data", "truncated", "no index", "two", "relu", "layers", "width"])  # fmt: skip
def test_a_google_folder_that_cannot_be_read_is_refused(tmp_path, broken, message):
    folder = write_google(tmp_path, google_names(random_tensors()), SIZES)
    broken(folder)
    assert message in refused(folder)


@pytest.mark.parametrize(("change", "message"), [
    ({KEY: None}, "1 tensors are missing (encoder.layer.1.attention.self.key.weight), 0 are unknown (none)"),
    ({"encoder.layer.3.output.dense.bias": np.zeros(48, np.float32)},
     "0 tensors are missing (none), 1 are unknown (encoder.layer.3.output.dense.bias); check the number of layers (3)"),
    ({QUERY: np.zeros((40, 48), np.float32), KEY: np.zeros((56, 48), np.float32)},
     f"{KEY} has shape (56, 48), {QUERY} (40, 48); they must be equal"),
    ({"encoder.layer.0.output.dense.weight": np.zeros((80, 48), np.float32)},
     "layers.0.ffn.out.kernel has shape (48, 80), the configuration needs (80, 48); the configuration file belongs to"),
    ({QUERY: np.zeros((48, 48), np.int8)}, f"{QUERY} is int8; needed is floating point, not quantised weights"),
    ({"qa_outputs.bias": None}, "1 tensors are missing (qa_outputs.bias)"),
    ({"qa_outputs.weight": None}, "1 are unknown (qa_outputs.bias)"),
    ({"qa_outputs.weight": np.zeros((3, 48), np.float32)}, "span.kernel has shape (48, 3), the configuration needs ("),
], ids=["missing", "unknown", "uneven", "turned", "int8", "no bias", "no kernel", "three labels"])  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(tmp_path, change, message):
    tensors = {name: value for name, value in (random_tensors() | change).items() if value is not None}
    folder = folder_of(tmp_path, tensors)
    assert message in refused(folder)
    assert str(folder) in refused(folder)


@pytest.mark.parametrize(("change", "message"), [
    ({"hidden_size": 64}, "embeddings.token has shape (60, 48), the configuration needs (60, 64)"),
    ({"num_hidden_layers": 2}, "0 tensors are missing (none), 16 are unknown (encoder.layer.2."),
    ({"num_attention_heads": 5}, "width 48 cannot be split over 5 heads; choose one of 1, 2, 3, 4, 6,"),
    ({"num_attention_heads": "many"}, "has a size that is no number"),
    ({"vocab_size": None}, "has a size that is no number"),
    ({"hidden_act": "silu"}, "activation 'silu' is not known"),
    ({"model_type": "distilbert"}, "is a 'distilbert' model; only BERT encoders can be read"),
])  # fmt: skip
def test_a_configuration_that_does_not_fit_is_told(tmp_path, change, message):
    assert message in refused(folder_of(tmp_path, config=CONFIG | change))


@pytest.mark.parametrize(("content", "message"), [
    (b"{", "config.json is not JSON (Expecting property name"), (b"\xff{}", "config.json is not JSON ('utf-8' codec"),
    (b"[]", "config.json holds a list, needed is a JSON object"),
    (b'{"layers": 3}', "lacks 'vocab_size'; it is not that of a BERT encoder"),
])  # fmt: skip
def test_a_configuration_that_is_none_is_told(tmp_path, content, message):
    folder = folder_of(tmp_path)
    (folder / "config.json").write_bytes(content)
    assert message in refused(folder)


@pytest.mark.parametrize("size", [0, 7, 3000, -1])
def test_a_truncated_weights_file_is_refused(tmp_path, size):
    file = folder_of(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert f"{file} is not a whole safetensors file" in refused(file.parent)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_float_types_are_read_as_float32(tmp_path, dtype):
    tensors = {name: value.astype(dtype) for name, value in random_tensors().items()}
    published = weights.load(str(folder_of(tmp_path, tensors)), SPAN)
    assert_used_exactly_once({name: value.astype(np.float32) for name, value in tensors.items()}, published)


def test_the_tokeniser_follows_tokenizer_config(tmp_path):
    folder = folder_of(tmp_path)
    assert weights.load(str(folder), SPAN).tokenizer == {"lowercase": True, "strip_accents": None, "chinese": True}
    stated = {"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated), encoding="utf-8")
    assert weights.load(str(folder), SPAN).tokenizer == {"lowercase": False, "strip_accents": False, "chinese": False}


def test_a_folder_without_weights_is_told_what_is_needed(tmp_path):
    message = refused(tmp_path)
    needed = ("config.json with model.safetensors", "bert_config.json with bert_model.ckpt", "best/model.safetensors")
    assert [part for part in needed if part not in message] == []


@pytest.mark.parametrize("source", ["nowhere", "bert-base", "../teacher", "/no/such/folder", "a/b/c"])
def test_what_is_neither_folder_nor_hub_name_is_told_at_once(source, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # where no such folder can lie beside it
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # not called
    message = refused(source)
    assert f"{source!r} is no folder" in message
    assert "minilm-l6" in message


def test_a_hub_name_without_a_network_is_told(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    message = refused("someone/bert")
    assert "someone/bert is no folder here and could not be fetched from the hub (ConnectionError)" in message
    assert "download the repository and name its folder" in message


def test_of_a_hub_repository_only_what_is_read_is_fetched(tmp_path, monkeypatch):
    folder, asked = folder_of(tmp_path), {}

    def fetched(name, allow_patterns):
        asked[name] = set(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    published = weights.load("someone/bert", SPAN)
    assert asked == {"someone/bert": {"config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"}}
    assert (published.source, published.folder) == ("someone/bert", folder)
    (folder / "model.safetensors").unlink()  # a repository with a pickle only
    assert "model.safetensors is not a whole safetensors file" in refused("someone/bert")
