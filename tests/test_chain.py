"""Every task by the same commands: train, distil, export with a plan, serve, answer; on data written for the tests.

With the fifth head's (test_heads.py) these take 45 s on 2 cores that others use, too; the limit for all of them is 90.
"""

import json

import numpy as np
import pytest
import task_kit as kit

from model import run_folder
from serve import manifest as manifests
from serve.answerer import Answerer
from serve.classifier import Classifier
from serve.embedder import Embedder
from serve.tagger import Tagger
from train import evaluate


def texts(rows) -> list[str]:
    return [str(value) for row in rows for value in row.values()]


def checked(folder, task: str, metrics: dict[str, dict], least: float, plan: bool = True) -> None:
    """What holds for every task: it learns, the student too, a plan is there, and the engine says what Keras says."""
    score = Answerer(folder / "engine").head.score
    assert metrics["teacher"]["best"][score] >= least
    assert metrics["student"]["best"][score] >= least - 15
    assert (metrics["engine"]["plan_bytes"] > 10_000) == plan
    assert metrics["engine"]["answers_changed"] == 0
    assert metrics["engine"][score] == pytest.approx(metrics["engine"][f"{score}_checkpoint"], abs=0.1)
    stated = json.loads((folder / "engine" / "engine.json").read_text())
    run = run_folder.read(folder / "student")
    assert (stated["task"], stated["labels"], stated["head"]) == (run.task, run.labels, run.head)
    assert run.task == task
    assert manifests.read(folder / "engine").target == ("tensorrt_rtx" if plan else None)


@pytest.fixture(scope="module")
def mails(tmp_path_factory):
    """(folder, metrics) of the whole way of a table of texts."""
    folder = tmp_path_factory.mktemp("mails")
    train, dev = (kit.write_csv(folder / f"{n}.csv", kit.csv_rows(s)) for n, s in (("train", 0), ("dev", 1)))
    kit.model(folder / "model", texts(kit.csv_rows(0)))
    return folder, kit.chain(folder, "csv", train, dev, student=("--augment", "1"))


def test_classification_from_a_table_to_an_answer(mails):
    folder, metrics = mails
    checked(folder, "csv", metrics, 95)
    assert run_folder.read(folder / "teacher").labels == ["cross", "pleased"]
    rows = kit.csv_rows(1)[:9]
    with Classifier(folder / "engine") as classifier:
        found = classifier.classify("The film was lovely and the song kind")
        assert (found.label, found.score) == ("pleased", pytest.approx(found.probabilities["pleased"]))
        assert sum(found.probabilities.values()) == pytest.approx(1)
        assert [classifier.classify(row["text"]).label for row in rows] == [row["label"] for row in rows]
        together = classifier.classify_many([(row["text"], "") for row in rows])
        assert [one.label for one in together] == [row["label"] for row in rows]


def test_two_texts_are_told_apart_from_one_another(tmp_path):
    """GLUE's RTE as its TSV has it; here the label is a matter of the second sentence alone."""
    header = "index\tsentence1\tsentence2\tlabel\n"
    for name, seed in (("train", 0), ("dev", 1)):
        rows = [list(row.values())[:3] for row in kit.pair_rows(seed, same=False)]
        lines = ["\t".join([str(place), *row]) for place, row in enumerate(rows)]
        (tmp_path / f"{name}.tsv").write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
    kit.model(tmp_path / "model", texts(kit.pair_rows(0)))
    metrics = kit.chain(tmp_path, "glue/rte", tmp_path / "train.tsv", tmp_path / "dev.tsv", plan=False)
    checked(tmp_path, "glue/rte", metrics, 90, plan=False)
    with Classifier(tmp_path / "engine") as classifier:
        for second, label in (("good", "entailment"), ("bad", "not_entailment")):
            texts_given = (
                f"the film was {word} and the room {end}" for word, end in (("song", "book"), (second, second))
            )
            assert classifier.classify(*texts_given).label == label


def test_a_number_is_learnt_from_json_lines(tmp_path):
    for name, seed in (("train", 0), ("dev", 1)):
        kit.write_jsonl(tmp_path / f"{name}.jsonl", kit.number_rows(seed))
    kit.model(tmp_path / "model", texts(kit.number_rows(0)))
    metrics = kit.chain(tmp_path, "csv/number", tmp_path / "train.jsonl", tmp_path / "dev.jsonl", "--epochs", "8")
    checked(tmp_path, "csv/number", metrics, 80)
    with Classifier(tmp_path / "engine") as classifier:
        low, high = (classifier.classify(f"the film was {word} and the song {word}") for word in ("bad", "good"))
        assert low < 0.7 < 1.3 < high


def test_tags_of_a_conll_file_become_entities_of_a_text(tmp_path):
    for name, seed in (("train", 0), ("dev", 1)):
        kit.write_conll(tmp_path / f"{name}.conll", kit.tagged(seed))
    kit.model(tmp_path / "model", [word for one in kit.tagged(0) for word, _ in one])
    metrics = kit.chain(tmp_path, "conll", tmp_path / "train.conll", tmp_path / "dev.conll")
    checked(tmp_path, "conll", metrics, 90)
    assert run_folder.read(tmp_path / "teacher").labels == ["O", "B-LOC", "B-PER", "I-PER"]
    with Tagger(tmp_path / "engine") as tagger:
        text = "Ada Rosa  saw the house in OSLO ."
        found = tagger.tag(text)
        assert [(e.kind, e.text) for e in found.entities] == [("PER", "Ada Rosa"), ("LOC", "OSLO")]
        assert all(text[e.start : e.end] == e.text for e in found.entities)
        assert tagger.tag(text.split()).tags == found.tags
        long = tagger.tag(" ".join([text] * 9))  # far more than a window holds: every word is decided
        assert (len(long.tags), min(long.scores) > 0.25) == (9 * 8, True)


def test_texts_get_vectors_whose_product_is_their_similarity(tmp_path):
    for name, seed in (("train", 0), ("dev", 1)):
        kit.write_csv(tmp_path / f"{name}.csv", kit.pair_rows(seed))
    kit.model(tmp_path / "model", texts(kit.pair_rows(0)))
    kept = ("--cache-teacher", "--attention-weight", "0")  # its vectors, one a text, are read back from disk
    metrics = kit.chain(tmp_path, "embed", tmp_path / "train.csv", tmp_path / "dev.csv", student=kept)
    assert len(list((tmp_path / "cache").glob("teacher-*/teacher.embedding"))) == 1
    checked(tmp_path, "embed", metrics, 80)
    assert run_folder.read(tmp_path / "teacher").head["scale"] == 5.0
    with Embedder(tmp_path / "engine") as embedder:
        same = ["the film was good and kind", "the room was lovely and bright"]
        vectors = embedder.embed([*same, "the house was ugly and dark"])
        assert vectors.shape == (3, 32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert vectors[0] @ vectors[1] > 0.5 + vectors[0] @ vectors[2]
        assert embedder.similarity(*same) == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-5)


def test_evaluate_scores_a_run_as_training_did(mails, tmp_path):
    folder, metrics = mails
    out = tmp_path / "said.json"
    config = evaluate.EvaluateConfig(run=str(folder / "student"), dev=str(folder / "dev.csv"), predictions=str(out))
    scored = evaluate.main(config)["metrics"]
    assert scored == {name: metrics["student"]["best"][name] for name in scored}
    assert set(json.loads(out.read_text()).values()) == {"cross", "pleased"}
