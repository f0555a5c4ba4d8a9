"""Stand-ins for words: nearest in the embeddings, or what the language model expects; both layouts of its head."""

import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tiny
from data_kit import write_vocab
from safetensors.numpy import load_file, save_file

from configs.errors import UserError
from data.squad import from_dict
from data.tokenize import Tokenizer
from distill.augment_questions import augment
from distill.candidates import HEAD, TABLE, Neighbours, candidates_for, chosen_pieces, usable
from distill.replace import Place
from model import weights
from model.bert import Bert, named_variables

WORDS = ("cat", "Cat", "dog", "lion", "the", "##lion", "[unused1]", "fox", "wolf", "st", "bear")
ANGLES = {"cat": 0, "Cat": 1, "dog": 10, "the": 2, "##lion": 3, "[unused1]": 4, "fox": 30, "lion": 20, "wolf": 50,
          "st": 5, "bear": 170}  # fmt: skip

def places(text, *wanted, number=0):
    return [Place(number, text.index(word), text.index(word) + len(word)) for word in wanted]


@pytest.fixture
def animals(tmp_path):
    """Neighbours in a plane: a word's vector is given by its angle, its length says nothing."""
    tokenizer = Tokenizer(write_vocab(tmp_path, WORDS), lowercase=False)
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").split()
    angle = np.radians([ANGLES.get(piece, 180) for piece in lines])
    length = np.arange(1, len(lines) + 1)
    table = np.stack([np.cos(angle), np.sin(angle)], axis=1) * length[:, None]
    return Neighbours(table.astype(np.float32), tokenizer, "a test")


def test_neighbours_are_the_nearest_words_by_angle_nearest_first(animals):
    assert animals.nearest(["cat", "wolf", "bear"], 3) == [
        ("dog", "lion", "fox"), ("fox", "lion", "dog"), ("wolf", "fox", "lion"),
    ]  # fmt: skip
    assert animals.nearest(["cat"], 99) == [("dog", "lion", "fox", "wolf", "bear")]


def test_a_word_of_several_pieces_is_near_their_mean_but_not_its_own_pieces(animals):
    # fox at 30 degrees and ##lion at 3, their vectors of lengths 13 and 11: the mean is at 17.6 degrees
    (found,) = animals.nearest(["foxlion"], 3)
    assert found == ("lion", "dog", "Cat")


def test_a_word_that_the_vocabulary_cannot_spell_has_no_neighbours(animals):
    assert animals.nearest(["ört", "cat"], 2) == [(), ("dog", "lion")]
    assert animals(["Fox fox"], [Place(0, 0, 3), Place(0, 4, 7)], 1) == [(), ("lion",)]  # a vocabulary with case


def test_neighbours_are_looked_up_for_each_distinct_word_once_and_in_blocks(animals, monkeypatch):
    monkeypatch.setattr("distill.candidates.WORDS_A_BLOCK", 2)
    text, told = "cat dog cat fox", []
    found = animals([text], [*places(text, "cat", "dog", "fox"), Place(0, 8, 11)], 2, lambda *done: told.append(done))
    assert found[0] == found[3] == ("dog", "lion")
    assert found[1] == animals.nearest(["dog"], 2)[0]
    assert told == [(2, 3), (3, 3)]


@pytest.mark.parametrize(("piece", "fits"), [
    ("lion", True), ("Lion", True), ("##lion", False), ("[MASK]", False), ("[unused12]", False), ("the", False),
    ("not", False), ("st", False), ("3rd", False), ("don't", False), ("löwe", False), ("", False),
])  # fmt: skip
def test_only_whole_plain_words_stand_in(piece, fits):
    assert usable(piece) == fits


def test_stand_ins_differ_in_more_than_case():
    assert chosen_pieces("Apple", ["apple", "pear", "APPLE", "Pear", "plum", "fig"], 2) == ("pear", "plum")


def write_model(folder, *, head=True, google=False, table=False, positions=64):
    """tiny.weights with a masked-language-model head in Hugging Face's layout, or all of it in Google's."""
    tiny.weights(folder, layers=2)
    random = np.random.default_rng(1)
    tensors, wide = load_file(folder / "model.safetensors"), tiny.WIDTH
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors["embeddings.position_embeddings.weight"] = random.normal(0, 0.5, (positions, wide)).astype(np.float32)
    config["max_position_embeddings"], config["hidden_act"] = positions, "gelu_new"
    shapes = {"dense.kernel": (wide, wide), "dense.bias": (wide,), "norm.scale": (wide,), "norm.offset": (wide,),
              "output.bias": (400,)}  # fmt: skip
    ours = {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    if head:
        tensors |= {HEAD[name][0]: value.T if value.ndim == 2 else value for name, value in ours.items()}
    if table:
        tensors[TABLE] = random.normal(0, 0.5, (400, wide)).astype(np.float32)
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    if google:
        (folder / "model.safetensors").unlink()
        (folder / "config.json").unlink()
        theirs = google_names(tensors)
        names, values = list(theirs), list(theirs.values())
        tf.raw_ops.SaveV2(prefix=str(folder / "bert_model.ckpt"), tensor_names=names, tensors=values,
                          shape_and_slices=[""] * len(names))  # fmt: skip
        (folder / "bert_config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}), encoding="utf-8")
    else:
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return ours


def google_names(tensors):
    """Hugging Face's tensors as google-research/bert names and turns them."""
    theirs = {}
    for name, value in tensors.items():
        *path, last = name.replace("encoder.layer.", "encoder.layer_").split(".")
        if path[-1] == "LayerNorm":
            last = {"weight": "gamma", "bias": "beta"}[last]
        elif path[-1].endswith("_embeddings"):
            *path, last = path
        elif path == ["cls", "predictions"]:
            last = "output_bias"
        elif last == "weight":
            last, value = "kernel", value.T
        theirs["/".join(["bert"] * (path[0] != "cls") + path + [last])] = value
    return theirs


def load(folder, **settings) -> Any:
    published = weights.load(str(folder))
    tokenizer = Tokenizer.from_config(published.tokenizer, folder / "vocab.txt")
    return candidates_for(published, tokenizer, **settings)


def expected(folder, head, text, place, most, table=None):
    """The pieces in order of their logits at the hidden word: one row, without padding, the head in numpy."""
    published = weights.load(str(folder))
    t = Tokenizer.from_config(published.tokenizer, folder / "vocab.txt")
    (encoding,) = t.encode_batch([text])
    at = encoding.offsets.index((place.first, place.last))
    masked = [*encoding.ids[:at], t.mask_id, *encoding.ids[at + 1 :]]
    ids = np.array([[t.cls_id, *masked, t.sep_id, *encoding.ids, t.sep_id]], np.int32)
    segments = (np.arange(ids.shape[1]) >= len(masked) + 2).astype(np.int32)[None]
    encoder = Bert(published.config)
    for name, variable in named_variables(encoder).items():
        variable.assign(published.tensors[name])
    x = encoder(ids, segments, np.ones_like(ids)).output.numpy()[0, at + 1] @ head["dense.kernel"] + head["dense.bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-12) * head["norm.scale"] + head["norm.offset"]
    logits = (published.tensors["embeddings.token"] if table is None else table) @ x + head["output.bias"]
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    best = [pieces[i] for i in np.argsort(-logits)[:most]]
    return chosen_pieces(text[place.first : place.last], [piece for piece in best if usable(piece)], most)


@pytest.mark.parametrize("layout", ["hugging face", "google", "own table"])
def test_the_language_model_computes_what_its_head_says(tmp_path, layout):
    head = write_model(tmp_path, google=layout == "google", table=layout == "own table")
    table = load_file(tmp_path / "model.safetensors")[TABLE] if layout == "own table" else None
    chosen = load(tmp_path, batch_size=2)
    assert chosen.kind == "mlm"
    text = "the river was long and the Town was rich"
    asked = places(text, "river", "Town", "rich")
    for place, found in zip(asked, chosen([text], asked, 40), strict=True):
        assert found == expected(tmp_path, head, text, place, 40, table)
        assert len(found) > 5


def test_the_head_may_use_the_decoders_name_and_those_of_before_2019(tmp_path):
    head = write_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    for name in [name for name in tensors if "LayerNorm" in name]:
        tensors[name.replace("weight", "gamma").replace("bias", "beta")] = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors")
    text = "the river was long"
    (place,) = places(text, "river")
    assert load(tmp_path)([text], [place], 30) == [expected(tmp_path, head, text, place, 30)]


def test_words_of_several_pieces_get_neighbours_in_place(tmp_path):
    write_model(tmp_path)
    chosen, near = load(tmp_path), load(tmp_path, kind="neighbours")
    texts = ["zebras in the river", "the zebras"]
    asked = [*places(texts[0], "zebras", "river"), *places(texts[1], "zebras", number=1)]
    told = []
    found = chosen(texts, asked, 5, lambda *done: told.append(done))
    assert [found[0], found[2]] == [near.nearest(["zebras"], 5)[0]] * 2
    assert found[1] != near.nearest(["river"], 5)[0]
    assert told[-1] == (3, 3)


def test_the_language_models_words_do_not_depend_on_the_batch(tmp_path):
    write_model(tmp_path)
    original = from_dict(tiny.builtin.load("train", count=3))
    texts = [e.question for e in original.examples] + [e.context[:200] for e in original.examples]
    asked = []
    for number, text in enumerate(texts):
        asked += places(text, *dict.fromkeys(filter(str.isalpha, text.split()[1:-1])), number=number)
    one, many = (load(tmp_path, batch_size=size)(texts, asked, 20) for size in (3, 32))
    assert one == many
    assert len(asked) > 60


@pytest.mark.parametrize("positions", [512, 40])  # 40 leave 18 tokens a half, 8 on each side of the word
def test_a_long_text_is_seen_around_the_word_alone(tmp_path, positions):
    write_model(tmp_path, positions=positions)
    chosen = load(tmp_path)
    middle = "people celebrate the harvest"
    texts = [" ".join(["a"] * 40 + [filler] * 20 + [middle] + [filler] * 20) for filler in ("river", "town")]
    texts.append(" ".join(["king"] * 200 + ["river"] * 20 + [middle] + ["river"] * 20 + ["king"] * 300))
    asked = [Place(n, text.index("harvest"), text.index("harvest") + 7) for n, text in enumerate(texts)]
    found = chosen(texts, asked, 30)
    assert found[0] == found[2] != found[1]


def test_a_set_augmented_by_the_language_model_keeps_its_answers(tmp_path):
    write_model(tmp_path)
    tiny.questions(tmp_path / "train.json", 6)
    original = from_dict(json.loads((tmp_path / "train.json").read_text(encoding="utf-8")))
    larger, report = augment(original, load(tmp_path, dtype="mixed_bfloat16"), copies=2)
    assert report.kind == "mlm"
    assert "has its masked-language-model head" in report.reason
    assert report.copies + report.same == 12
    assert report.copies > 8
    for copy in larger.examples:
        assert all(copy.context.startswith(a.text, a.start) for a in copy.answers)


def test_auto_takes_neighbours_where_there_is_no_head_and_says_why(tmp_path):
    write_model(tmp_path, head=False)
    chosen = load(tmp_path)
    assert (chosen.kind, "no masked-language-model head" in chosen.reason) == ("neighbours", True)
    with pytest.raises(UserError, match=r"no masked-language-model head .* take --kind neighbours"):
        load(tmp_path, kind="mlm")


def test_a_head_that_is_asked_not_to_be_used_is_not(tmp_path):
    write_model(tmp_path)
    assert load(tmp_path, kind="neighbours").reason == "asked for"


def test_an_incomplete_head_is_named(tmp_path):
    write_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["cls.predictions.transform.dense.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    assert "cls.predictions.transform.dense.bias or" in load(tmp_path).reason
    with pytest.raises(UserError, match=r"incomplete, .*transform.dense.bias"):
        load(tmp_path, kind="mlm")


def test_a_vocabulary_without_mask_has_no_language_model(tmp_path):
    write_model(tmp_path)
    path = tmp_path / "vocab.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("[MASK]", "[HIDE]"), encoding="utf-8")
    assert load(tmp_path).reason.startswith("no [MASK] in")


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t["cls.predictions.bias"][:-1], r"cls.predictions.bias has shape \(399,\), the sizes need \(400,\)"),
    (lambda t: t["cls.predictions.bias"] * np.nan, "cls.predictions.bias is not finite"),
])  # fmt: skip
def test_a_damaged_head_is_refused(tmp_path, change, message):
    write_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["cls.predictions.bias"] = change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_sources_that_know_no_words_are_refused(tmp_path):
    write_model(tmp_path, head=False)
    published = weights.load(str(tmp_path))
    tokenizer = Tokenizer(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="bert-tiny is a size with random weights"):
        candidates_for("bert-tiny", tokenizer)
    with pytest.raises(UserError, match="kind 'glove' are not known; choose one of auto, mlm, neighbours"):
        candidates_for(published, tokenizer, "glove")
    published.tensors["embeddings.token"] = published.tensors["embeddings.token"][:300]
    with pytest.raises(UserError, match=r"400 pieces, .* have 300 rows"):
        candidates_for(published, tokenizer)
    published.tensors["embeddings.token"] = np.full((400, 32), np.nan, np.float32)
    with pytest.raises(UserError, match="not finite"):
        candidates_for(published, tokenizer)
    with pytest.raises(UserError, match="missing"):
        candidates_for(published, Tokenizer(tmp_path / "nowhere.txt"))
