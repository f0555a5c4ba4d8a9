"""Heads: a new one is one file, each says what its contract asks, and labels keep their meaning from run to run."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import export_kit
import numpy as np
import pytest
import server_kit
import task_kit as kit
import tensorflow as tf
from safetensors.numpy import load_file, save_file
from server_kit import Served

import heads
from configs.errors import UserError
from data.sentences import Dataset, Example
from data.tagged import Example as Tagged
from model import run_folder, weights
from serve.answerer import Answerer
from serve.classifier import Classifier

FOLDER = Path(__file__).parent
LABELS = {"csv": ("a", "b", "c"), "conll": ("O", "B-X", "I-X")}


def test_a_fifth_head_is_one_file(tmp_path, monkeypatch):
    """It goes the whole way by the same commands, from a file that nothing else of the project knows."""
    (tmp_path / "more").mkdir()
    shutil.copyfile(FOLDER / "fifth_head.py", tmp_path / "more" / "yes.py")
    monkeypatch.setattr(heads, "__path__", [*heads.__path__, str(tmp_path / "more")])
    try:
        for name, seed in (("train", 0), ("dev", 1)):
            rows = kit.csv_rows(seed)
            lines = [f"{'yes' if row['label'] == 'pleased' else 'no'}\t{row['text']}" for row in rows]
            (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        kit.model(tmp_path / "model", [row["text"] for row in kit.csv_rows(0)])
        metrics = kit.chain(tmp_path, "yes", tmp_path / "train.txt", tmp_path / "dev.txt")
        assert [metrics[who]["best"]["accuracy"] >= 90 for who in ("teacher", "student")] == [True, True]
        assert (metrics["engine"]["answers_changed"], metrics["engine"]["plan_bytes"] > 10_000) == (0, True)
        with Answerer(tmp_path / "engine") as engine:
            asked = [{"text": f"the film was {word} and the song {word}"} for word in ("good", "bad")]
            assert engine.respond(asked) == [{"yes": True}, {"yes": False}]
        served = Served(server_kit.settings(tmp_path / "engine"))
        assert served.ask("POST", "/yes", json=asked[0]).json()["yes"] is True
        assert served.ask("GET", "/engine").json()["route"] == "/yes"
        served.close()
    finally:
        sys.modules.pop("heads.yes", None)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"no task 'yes'.*; there are .*squad"):
        heads.find("yes")


@pytest.mark.parametrize("task", sorted({entry: task for task, entry in heads.entries().items()}.values()))
def test_a_head_says_the_same_of_itself_in_keras_and_in_its_contract(task):
    """Outputs have the shapes that are stated, names fit the tensors, losses are a row's and stay finite."""
    from model.heads import HeadModel

    head, sizes = heads.find(task, LABELS.get(task, ())), replace(export_kit.SIZES, hidden=24, dropout=0.5)
    model = HeadModel(head, sizes)
    assert {name: tuple(value.shape) for name, value in model.tail.named.items()} == head.shapes(sizes)
    for layout in ("hugging_face", "google"):
        assert set(head.published(layout)) == set(head.shapes(sizes))
    rows = 4 * head.together
    ids = tf.constant(np.random.default_rng(0).integers(0, 400, (rows, 6)), tf.int32)
    mask = tf.constant([[1] * 6, [1] * 4 + [0] * 2] * (rows // 2), tf.int32)
    seed = tf.constant([1, 2], tf.int64)
    outputs = model(ids, tf.zeros_like(ids), mask, seed=seed)
    for output, value in zip(head.outputs(sizes.hidden), outputs, strict=True):
        lead = (rows, 6) if output.per == "token" else (rows,)
        assert value.shape == lead + (() if output.width is None else (output.width,))
    batch = {
        "padding_mask": mask, "start_positions": tf.constant([1] * 4), "end_positions": tf.constant([2] * 4),
        "labels": tf.constant([0, 1, 0, 1]), "targets": tf.constant([0.0, 1.0, 0.5, 0.2]),
        "tags": tf.constant([[-1, 0, 1, -1, -1, -1]] * 3 + [[-1] * 6]),
    }  # fmt: skip
    calm = model(ids, tf.zeros_like(ids), mask)
    cross = lambda z, t, real: tf.reduce_sum(tf.nn.softmax(t) * -tf.nn.log_softmax(z), axis=-1)  # noqa: E731
    for loss in (head.loss(outputs, batch), head.soft_loss(calm, outputs, batch, cross)):
        assert (loss.shape, bool(tf.reduce_all(tf.math.is_finite(loss)))) == ((4,), True)
    # Nothing is nearer to a teacher than the teacher itself, wherever its outputs differ.
    other = tuple(value[::-1] + 0.1 for value in calm)
    nearest, further = (head.soft_loss(given, calm, batch, cross).numpy() for given in (calm, other))
    assert (nearest <= further + 1e-6).all()
    assert nearest.sum() < further.sum() or not head.shapes(sizes)


def test_a_setting_that_a_head_has_not_is_refused_and_none_is_no_setting():
    assert heads.find("embed", (), {"pooling": None}).settings["pooling"] == "mean"
    with pytest.raises(UserError, match=r"--task squad has no setting \['pooling'\]; it has \['max_answer_tokens'\]"):
        heads.find("squad", (), {"pooling": "cls"})
    with pytest.raises(UserError, match=r"no task 'glue/sst3' \(did you mean glue/sst2\?\); there are "):
        heads.find("glue/sst3")


def test_classes_in_another_order_are_seen_in_a_teacher():
    """What its outputs would score with its classes exchanged, and what to do."""
    head = heads.find("csv", ("no", "yes", "maybe"))
    dataset = Dataset([Example(str(i), "t", "", head.labels[i % 3]) for i in range(9)])
    right = [np.eye(3, dtype=np.float32)[i % 3] * 5 for i in range(9)]
    wrong = [row[[1, 2, 0]] for row in right]
    best = max(
        head.metrics(dataset, head.decode(None, dataset, o))["accuracy"] for o, _ in head.misread((wrong,)).values()
    )
    assert (head.metrics(dataset, head.decode(None, dataset, (wrong,)))["accuracy"], best) == (0, 100)
    assert heads.find("csv", tuple("abcdef")).misread((right,)) == {}


def test_published_classifiers_and_taggers_are_read_and_written_by_their_names(tmp_path):
    """A run goes to Hugging Face and comes back; without its classifier the pooler alone is taken."""
    from export import checkpoint, hf

    for task, architecture in (("csv", "BertForSequenceClassification"), ("conll", "BertForTokenClassification")):
        head, run = heads.find(task, LABELS[task]), tmp_path / task
        export_kit.run(run, task=task, labels=list(head.labels))
        random = np.random.default_rng(1)
        own = {
            name: random.normal(size=shape).astype(np.float32) for name, shape in head.shapes(export_kit.SIZES).items()
        }
        kept = {n: v for n, v in export_kit.tensors(export_kit.SIZES).items() if not n.startswith("span")}
        save_file(kept | own, run / "best" / "model.safetensors")
        folder = tmp_path / f"{task}-hf"
        folder.mkdir()
        hf.write(folder, checkpoint.read(run))
        assert hf.model_config(checkpoint.read(run))["architectures"] == [architecture]
        back = weights.load(str(folder), head)
        assert (back.labels, back.left_over) == (list(head.labels), [])
        assert all((back.tensors[name] == value).all() for name, value in (kept | own).items())
        assert checkpoint.read(folder, task).head.labels == head.labels
    tensors = {n: v for n, v in load_file(tmp_path / "csv-hf" / "model.safetensors").items() if "classifier" not in n}
    save_file(tensors, tmp_path / "csv-hf" / "model.safetensors")
    taken = weights.load(str(tmp_path / "csv-hf"), heads.find("csv", ("x", "y"))).tensors
    assert {"pooler.kernel", "pooler.bias"} == set(taken) - set(kept)


def test_another_tasks_run_gives_its_encoder_and_its_pooler_alone(tmp_path):
    head = heads.find("csv", ("a", "b"))
    export_kit.run(tmp_path / "run", task="csv", labels=["a", "b"])
    own = {name: np.ones(shape, np.float32) for name, shape in head.shapes(export_kit.SIZES).items()}
    kept = {n: v for n, v in export_kit.tensors(export_kit.SIZES).items() if not n.startswith("span")}
    save_file(kept | own, tmp_path / "run" / "best" / "model.safetensors")

    def read(task, labels=()):
        found = weights.load(str(tmp_path / "run"), heads.find(task, labels))
        return set(found.tensors) - set(kept), sorted(found.left_over)

    assert read("csv", ("a", "b")) == (set(own), [])
    other = ({"pooler.kernel", "pooler.bias"}, ["classifier.bias", "classifier.kernel"])
    assert read("csv", ("b", "a")) == read("glue/rte") == other
    assert read("squad") == (set(), sorted(own))


def test_an_engine_of_another_kind_is_refused_by_name(tmp_path):
    import serve_kit

    folder = serve_kit.write(tmp_path / "engine")
    with pytest.raises(
        UserError, match=r"is an engine for --task squad \(question answering\), which Classifier does not"
    ):
        Classifier(folder)
    answer = Answerer(folder).respond([{"question": serve_kit.QUESTION, "context": serve_kit.PASSAGE}])[0]
    assert (answer["answer"], answer["start"]) == ("Ada Lovelace", 34)
    with pytest.raises(UserError, match="text 0 is missing; give"):
        heads.find("glue/rte").example({"second": "x"})
    for words in ([], ["a b"], ["a", 3], "ab"):
        with pytest.raises(UserError, match="words 0"):
            heads.find("conll", LABELS["conll"]).example({"words": words})


def test_words_of_a_free_text_are_found_in_any_script():
    example = heads.find("conll", LABELS["conll"]).example({"text": "Don't go to 北京市, O'Neil-Smith!"})
    assert [example.text[a:b] for a, b in example.words] == [
        "Don't", "go", "to", "北", "京", "市", ",", "O'Neil-Smith", "!",
    ]  # fmt: skip
    assert Tagged.of_words("1", ["ab", "c"], ["O", "O"]).words == ((0, 2), (3, 4))


def test_a_student_must_mean_the_same_by_its_outputs(tmp_path):
    from distill_kit import distil

    train = kit.write_csv(tmp_path / "train.csv", kit.csv_rows(0))
    kit.model(tmp_path / "model", [row["text"] for row in kit.csv_rows(0)])
    source = weights.load(str(tmp_path / "model"))
    for who, labels in (("teacher", ["cross", "pleased"]), ("student", ["pleased", "cross"])):
        head = heads.find("csv", labels)
        run_folder.write(_made(tmp_path / who), run_folder.RunInfo(
            source.config.to_dict(), source.tokenizer, 32, 12, 8, 8, task="csv", labels=labels, head=head.settings
        ))  # fmt: skip
        own = {name: np.zeros(shape, np.float32) for name, shape in head.shapes(source.config).items()}
        save_file(source.tensors | own, tmp_path / who / "best" / "model.safetensors")
        shutil.copyfile(tmp_path / "model" / "vocab.txt", tmp_path / who / "vocab.txt")
    argv = ["--teacher", tmp_path / "teacher", "--data", train, "--out", tmp_path / "run", "--check-questions", "0"]
    with pytest.raises(UserError, match=r"labels \['pleased', 'cross'\], the teacher \['cross', 'pleased'\]"):
        distil([*map(str, argv), "--student", str(tmp_path / "student")])
    with pytest.raises(UserError, match=r"--task squad: the teacher .* was trained for --task csv; name another"):
        distil([*map(str, argv), "--task", "squad"])
    rows = [row | {"label": "delighted"} if place == 3 else row for place, row in enumerate(kit.csv_rows(0))]
    kit.write_csv(train, rows)
    with pytest.raises(UserError, match=r"the label 'delighted' \(1 rows, the first is 5\) was never seen in training"):
        distil(list(map(str, argv)))
    assert not (tmp_path / "run").exists()


def _made(folder: Path) -> Path:
    (folder / "best").mkdir(parents=True)
    return folder
