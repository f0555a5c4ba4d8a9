"""Texts with labels: tables, JSON lines and GLUE's files read as they are, and what bad input gets."""

import gzip
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from data_kit import letters
from task_kit import write_csv, write_jsonl

from configs.errors import UserError
from data import glue, sentences, sources
from data.features import FeatureOptions
from data.sentences import Example
from data.sequences import of_texts, shorten
from heads import find

OPTIONS = FeatureOptions(16, 4, 4)


def read(path, number=False, **columns):
    names = {"text": "text", "second": None, "label": "label"} | columns
    return sentences.read_table(str(path), **names, number=number)


def test_a_table_is_read_by_its_columns_names_whatever_they_hold(tmp_path):
    text = 'A "quoted" word,\na second line'
    path = write_csv(tmp_path / "a.csv", [{"id": 1, "body": text, "kind": "x y"}, {"id": 2, "body": "b", "kind": "7"}])
    found = read(path, text="body", label="kind")
    assert found.examples == [Example("3", text, "", "x y"), Example("4", "b", "", "7")]
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))  # with a byte order mark
    assert read(packed, text="body", label="kind").examples == found.examples
    tsv = tmp_path / "a.tsv"
    tsv.write_text("text\tlabel\n\"half a quote\t1\n'\t2\n", encoding="utf-8")
    assert [e.first for e in read(tsv).examples] == ['"half a quote', "'"]
    lines = write_jsonl(tmp_path / "a.jsonl", [{"text": "\ud800a", "label": 3}, {"text": "b", "label": 4.0}])
    assert [(e.first, e.label) for e in read(lines).examples] == [("\ufffda", "3"), ("b", "4")]
    assert [e.label for e in read(lines, number=True).examples] == [3.0, 4.0]


# What bad input gets: a file's name, its content, flags, and what the error must say.
BAD = {
    "a label column that is missing": ("a.csv", "text,kind\na,b\n", {}, "line 2: no column 'label', there are 'text', "
                                       "'kind'; name yours with --text-column"),
    "a text column that is missing": ("a.csv", "words,label\na,b\n", {}, "no column 'text'"),
    "an empty label": ("a.csv", "text,label\na,x\nb, \n", {}, "line 3: the label is ' '; needed is a class's name"),
    "a label that is NaN": ("a.jsonl", '{"text": "a", "label": NaN}', {}, "line 1: the label is nan"),
    "a fraction as a class": ("a.jsonl", '{"text": "a", "label": 0.5}', {}, "to be predicted are --task csv/number"),
    "a target that is NaN": ("a.csv", "text,label\na,1\nb,nan\n", {"number": True},
                             "line 3: the target is 'nan'; needed is a finite number"),
    "a target that is infinite": ("a.csv", "text,label\na,inf\n", {"number": True}, "the target is 'inf'"),
    "a target that is no number": ("a.jsonl", '{"text": "a", "label": true}', {"number": True}, "the target is True"),
    "text that is none": ("a.jsonl", '{"text": 3, "label": "x"}', {}, "line 1: 'text' is int, needed is text"),
    "too many empty texts": ("a.csv", "text,label\n ,x\nb,y\n", {}, r"1 of 2 rows have an empty text \(first: line 2"),
    "too many fields": ("a.csv", "text,label\na,b,c\n", {}, "3 fields, the header has 2; put text that holds ','"),
    "a quote left open": ("a.csv", 'text,label\n"a,b\n', {}, "unexpected end of data; is it a .csv file"),
    "a header that says a name twice": ("a.csv", "text,text\na,b\n", {}, "a column's name stands twice"),
    "no row": ("a.csv", "text,label\n", {}, "has no row"),
    "an empty file": ("a.csv", "", {}, "has no row"),
    "a line that is no JSON": ("a.jsonl", '{"text": "a"', {}, "line 1 is not JSON"),
    "a line that is a list": ("a.jsonl", "[1]", {}, "line 1 is a list, needed is an object"),
    "nested without end": ("a.jsonl", "[" * 100_000, {}, "line 1 is not JSON"),
    "another kind of file": ("a.parquet", "x", {}, r"must end in .csv, .tsv or .jsonl"),
    "bytes that are no text": ("a.csv", b"text,label\n\xff,b\n", {}, "byte 11 is not UTF-8"),
    "a broken gzip": ("a.csv.gz", b"\x1f\x8b\x08\x00", {}, "broken gzip"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_its_line(case, tmp_path):
    name, content, columns, said = BAD[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        read(path, **columns)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.csv is missing; give a \.csv, \.tsv or \.jsonl file"):
        read(tmp_path / "no.csv")


def test_one_class_or_one_target_teaches_nothing(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"text": "a", "label": "1"}, {"text": "b", "label": "1"}])
    for task, said in (("csv", "has one class only, '1'; there is nothing to tell apart"),
                       ("csv/number", r"has one target only, 1\.0; there is nothing to learn")):  # fmt: skip
        head = find(task, (), {"label_column": "label"})
        with pytest.raises(UserError, match=said):
            head.fit(head.read(str(path)))
    head = find("csv")
    names = ["b", "10", "9", "a"]
    rows = write_csv(tmp_path / "b.csv", [{"text": "t", "label": name} for name in names])
    assert head.fit(head.read(str(rows))).labels == ("9", "10", "a", "b")  # numbers by size, before words


def test_the_longer_text_is_cut_first_as_by_google(tmp_path):
    def by_pops(n, m, room):
        while n + m > room:
            n, m = (n - 1, m) if n > m else (n, m - 1)
        return n, m

    random = np.random.default_rng(0)
    n, m, room = (random.integers(low, 40, 500) for low in (0, 0, 5))
    kept = np.stack(shorten(n, m, room), axis=1)
    np.testing.assert_array_equal(kept, [by_pops(*row) for row in zip(n, m, room, strict=True)])
    tokenizer = letters(tmp_path)
    found = of_texts(["1", "2", "3"], ["abc", "abcdefghij", "x"], ["", "klmnopqr", "yz"], tokenizer, 16)
    assert (found.length.tolist(), found.cut) == ([5, 16, 6], 1)
    batch = found.assemble(np.array([1, -1, 2, 0]), 16)
    inverse = {i: piece for i, piece in enumerate((tmp_path / "vocab.txt").read_text().split("\n"))}
    said = [" ".join(inverse[i].removeprefix("##") for i in row) for row in batch["token_ids"]]
    assert said[0] == "[CLS] a b c d e f g [SEP] k l m n o p [SEP]"
    assert said[1].startswith("[CLS] [SEP] [PAD]")
    assert said[2].startswith("[CLS] x [SEP] y z [SEP] [PAD]")
    assert batch["segment_ids"][2].tolist() == [0, 0, 0, 1, 1, 1] + [0] * 10
    assert batch["padding_mask"].sum(axis=1).tolist() == [16, 2, 6, 5]


def test_pairs_to_be_compared_lie_side_by_side_in_a_batch(tmp_path):
    from data import batches

    head = find("embed")
    dataset = head.dataset([Example(str(i), "a" * (i + 1), "b" * (7 - i), float(i)) for i in range(5)])
    features = head.fit(dataset).featurise(dataset, letters(tmp_path), OPTIONS)
    assert batches.lengths(features).tolist() == [9, 8, 7, 6, 7]
    plan = batches.plan(batches.lengths(features), 4, (9,), shuffle=False)
    first, last = batches.batches(features, plan)
    assert [row.tolist() for row in (plan[0][1], plan[1][1])] == [[3, 2, 4, 1], [0, -1, -1, -1]]
    assert first["token_ids"].shape == (8, 9)
    np.testing.assert_array_equal(first["targets"], np.array([3, 2, 4, 1], np.float32) / 4)
    assert first["padding_mask"].sum(axis=1).tolist() == [6, 5, 7, 4, 6, 7, 5, 8]  # all first texts, then all second
    assert (last["weight"].tolist(), last["row"].tolist()) == ([1, 0, 0, 0], [0, -1, -1, -1, 1, -1, -1, -1])
    assert batches.rank_rows(first["row"], 1, 2).tolist() == [4, 2, 5, 3]  # a device's share keeps pairs together
    single = head.featurise(head.dataset([head.example({"text": "abc"})]), letters(tmp_path), OPTIONS)
    assert (len(single), single.together) == (1, 1)


GLUE_FILES = {  # name -> lines of its TSV, the example expected of the last one
    "cola": ("gj04\t1\t\tIt rains.\nks08\t0\t*\tIt rain.", ("It rain.", "", "unacceptable")),
    "sst2": ("sentence\tlabel\nso \"good\"\t1\ndull \t0", ("dull ", "", "negative")),
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb", ("a", "b", "equivalent")),
    "stsb": ("index\tgenre\tsentence1\tsentence2\tscore\n0\tx\ta\tb\t3.75", ("a", "b", 3.75)),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta\tb\t0", ("a", "b", "not_duplicate")),
    "mnli": ("index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tcontradiction",
             ("a", "b", "contradiction")),
    "qnli": ("index\tquestion\tsentence\tlabel\n0\ta\tb\tnot_entailment", ("a", "b", "not_entailment")),
    "rte": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment", ("a", "b", "entailment")),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1", ("a", "b", "entailment")),
}  # fmt: skip


@pytest.mark.parametrize("name", glue.TASKS)
def test_each_task_of_glue_is_read_from_its_own_file(name, tmp_path):
    content, expected = GLUE_FILES[name]
    path = tmp_path / "dev.tsv"
    path.write_text(content + "\r\n", encoding="utf-8")
    example = find(f"glue/{name}").read(str(path)).examples[-1]
    assert (example.first, example.second, example.label) == expected


def test_a_file_of_another_task_or_without_labels_is_refused(tmp_path):
    path = tmp_path / "test.tsv"
    path.write_text("index\tsentence\n0\ta\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"is not GLUE's sst2: its header lacks \['label'\], it has \['index', 'sentence'\]"
    ):
        glue.read("sst2", str(path))
    path.write_text("sentence\tlabel\na\t5\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2: the label '5' is none of GLUE's sst2 \(negative, positive\)"):
        glue.read("sst2", str(path))
    with pytest.raises(UserError, match=r"tfds:glue/rte is not --task glue/sst2"):
        glue.read("sst2", "tfds:glue/rte")


def test_tensorflow_datasets_gives_the_split_that_is_asked_for(monkeypatch):
    asked, rows = [], [{"idx": 4, "premise": b"a", "hypothesis": b"b", "label": 2}]
    builder = SimpleNamespace(is_prepared=lambda: True, as_dataset=lambda split: asked.append(split))
    fake = SimpleNamespace(builder=lambda name: asked.append(name) or builder, as_numpy=lambda _: rows)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    found = glue.read("mnli", "tfds:glue/mnli_mismatched", split="dev")
    assert (asked, found.examples) == (
        ["glue/mnli", "validation_mismatched"],
        [Example("4", "a", "b", "contradiction")],
    )
    monkeypatch.setattr(fake, "builder", lambda name: json.loads("no network"))
    with pytest.raises(UserError, match=r"tfds:glue/mnli could not be fetched .*download GLUE's mnli TSV elsewhere"):
        glue.read("mnli", "tfds:glue/mnli")
    assert sources.SQUAD_HOST != glue.GLUE_HOST
