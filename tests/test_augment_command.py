"""`python -m distill.augment`: the file reads back, byte for byte the same; bad flags, weights, places are refused."""

import gzip
import json
from dataclasses import replace

import pytest
import tiny
from data_kit import dataset, example

import heads
from configs import options
from configs.errors import UserError
from data import squad, written
from data.sentences import Dataset as Sentences
from data.sentences import Example as Sentence
from data.squad import Answer, Example
from distill import augment as command
from distill import out_file
from distill.augment_config import AugmentConfig


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with weights and a small data set of version 2.0."""
    folder = tmp_path_factory.mktemp("augment")
    tiny.weights(folder / "model")
    tiny.questions(folder / "train.json", 30, version="2.0")
    return folder


def settings(home, out, *flags):
    files = ["--data", str(home / "train.json"), "--model", str(home / "model"), "--out", str(out)]
    return options.parse(AugmentConfig, [*files, *flags], "distill.augment")


def test_the_command_writes_a_set_that_reads_back(home, tmp_path):
    out = tmp_path / "deep" / "more.json.gz"
    done = tiny.start(["--data", str(home / "train.json"), "--model", str(home / "model"), "--out", str(out),
                       "--copies", "2", "--seed", "3"], ("-m", "distill.augment"))  # fmt: skip
    code, last, text = tiny.finish(done)
    assert code == 0, text
    assert (last["command"], last["out"], last["metrics"]["kind"]) == ("distill.augment", str(out), "neighbours")
    assert "tensorflow" not in last["versions"]
    assert "candidates: neighbours (no masked-language-model head" in text
    read, original = squad.read(out), squad.read(home / "train.json")
    assert read.examples[:30] == original.examples
    assert (read.version, read.skipped) == ("2.0", [])
    assert len(read.examples) == 30 + last["metrics"]["copies"]
    assert [path.name for path in out.parent.iterdir()] == ["more.json.gz"]


def test_the_same_command_writes_the_same_bytes_packed_or_not(home, tmp_path):
    for name in ("a.json.gz", "b.json.gz", "c.json"):
        result = command.main(settings(home, tmp_path / name, "--copies", "2"))
        assert result["metrics"]["examples"] == 30
    packed = (tmp_path / "a.json.gz").read_bytes()
    assert packed == (tmp_path / "b.json.gz").read_bytes()
    assert packed[4:8] == bytes(4)  # gzip's time of writing
    assert gzip.decompress(packed) == (tmp_path / "c.json").read_bytes()


def test_a_written_set_keeps_order_text_and_version(tmp_path):
    odd = dataset(
        Example("1", "é", 'say "ö"\n\U0001f600', "q", (Answer("ö", 5), Answer("say", 0)), False),
        Example("2", "é", "other", "q", (), True), Example("3", "t", 'say "ö"\n\U0001f600', "r", (), True),
        version="2.0",
    )  # fmt: skip
    out_file.write(written.squad_json(odd), tmp_path / "odd.json")
    read = squad.read(tmp_path / "odd.json")
    assert (read.examples, read.version) == (odd.examples, "2.0")
    articles = json.loads((tmp_path / "odd.json").read_text(encoding="utf-8"))["data"]
    assert len(articles) == 2
    assert articles[0]["paragraphs"][1]["qas"][0]["is_impossible"] is True


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    out = tmp_path / "set.json"
    out.write_text("old", encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        out_file.write(written.squad_json(dataset(example("a", "\ud800", "q", "\ud800"))), out)
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [("set.json", "old")]


def test_a_place_that_cannot_be_written_is_refused_before_the_work(home, tmp_path):
    (tmp_path / "old.json").write_text("{}", encoding="utf-8")
    (tmp_path / "folder.json").mkdir()
    refused = {
        "set.txt": "must end in .json, packed",
        "folder.json": "is a folder",
        "old.json": "add --overwrite to replace it",
        "old.json/below.json": "cannot be written",
    }
    for name, message in refused.items():
        with pytest.raises(UserError, match=message):
            command.main(settings(home, tmp_path / name))
    with pytest.raises(UserError, match="is what is read"):
        command.main(settings(home, home / "train.json", "--overwrite"))
    assert command.main(settings(home, tmp_path / "old.json", "--overwrite", "--copies", "1", "--limit", "3"))
    assert squad.read(tmp_path / "old.json").examples[2].id == squad.read(home / "train.json").examples[2].id


@pytest.mark.parametrize(("flags", "message"), [
    (["--copies", "0"], "copies"), (["--probability", "1.5"], "probability"), (["--kind", "glove"], "kind"),
    (["--amp", "float64"], "amp"),
])  # fmt: skip
def test_flags_out_of_range_are_refused_by_name(home, tmp_path, flags, message):
    with pytest.raises(UserError, match=f"--{message}"):
        settings(home, tmp_path / "x.json", *flags)


def test_weights_without_vocabulary_need_one(home, tmp_path):
    bare = tmp_path / "bare"
    tiny.weights(bare)
    (bare / "vocab.txt").rename(tmp_path / "words.txt")
    with pytest.raises(UserError, match=r"no vocabulary at .*bare/vocab.txt; name one with --vocab FILE"):
        command.main(settings(home, tmp_path / "x.json", "--model", str(bare)))
    flags = ["--model", str(bare), "--vocab", str(tmp_path / "words.txt"), "--limit", "2"]
    assert command.main(settings(home, tmp_path / "x.json", *flags))["metrics"]["examples"] == 2


TEXTS = ["the good film", 'a "bad" song, at night', "the kind room", "an ugly book"]
SETS = {  # task -> more flags, the file's name, what it holds
    "csv": (["--text-column", "body", "--second-column", "other"], "mails.csv",
            "body,other,label\n" + "".join(f'"{text.replace(chr(34), chr(34) * 2)}",the meal,{place % 2}\n'
                                           for place, text in enumerate(TEXTS))),
    "csv/number": ([], "numbers.jsonl",
                   "".join(json.dumps({"text": text, "target": 0.5 * at}) + "\n" for at, text in enumerate(TEXTS))),
    "embed": ([], "pairs.tsv",
              "sentence1\tsentence2\tscore\n" + "".join(f"{one}\tthe meal\t{at}\n" for at, one in enumerate(TEXTS))),
    "glue/sst2": ([], "train.tsv", "sentence\tlabel\n" + "".join(f"{one}\t{at % 2}\n" for at, one in enumerate(TEXTS))),
    "glue/cola": ([], "cola.tsv", "".join(f"x\t{at % 2}\t\t{text}\n" for at, text in enumerate(TEXTS))),
    "conll": ([], "names.conll", "# B-X\nthe O\nfilm O\n\nthe O\nada B-PER\nsaw O\nroom O\n"),
}  # fmt: skip


@pytest.mark.parametrize("task", SETS)
def test_a_set_of_any_task_is_written_as_the_task_reads_it(home, tmp_path, task):
    """Each copy from its original row: of a pair one text is varied, of tagged words none of an entity."""
    flags, name, text = SETS[task]
    (tmp_path / name).write_text(text, encoding="utf-8")
    out = tmp_path / f"more-{name}.gz"
    argv = ["--data", tmp_path / name, "--model", home / "model", "--out", out, "--task", task, "--copies", 3, *flags]
    config = options.parse(AugmentConfig, [str(word) for word in argv], "distill.augment")
    copies = command.main(config)["metrics"]["copies"]
    assert copies > 0
    head = heads.of_flags(config)
    originals, written_ = (head.read(str(path)).examples for path in (tmp_path / name, out))
    without = [replace(example, id="") for example in originals]
    assert [replace(example, id="") for example in written_[: len(originals)]] == without
    assert len(written_) == len(originals) + copies
    for copy in written_[len(originals) :]:
        if task == "conll":
            (source,) = [one for one in originals if one.tags == copy.tags]
            pairs = zip(source.words, copy.words, source.tags, strict=True)
            assert all(
                source.text[slice(*one)] == copy.text[slice(*other)] for one, other, tag in pairs if tag != "O"
            )
        else:
            assert any(
                (one.first == copy.first or one.second == copy.second) and one.label == copy.label for one in originals
            )


def test_files_and_parts_that_a_task_does_not_have_are_refused(home, tmp_path):
    for flags, message in (
        (["--task", "csv"], "must end in .csv or .tsv or .jsonl"),
        (["--task", "glue/sst2"], "must end in .tsv, packed"),
        (["--task", "encode"], "no labelled examples to vary"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            command.main(settings(home, tmp_path / "x.json", *flags))
    with pytest.raises(UserError, match="--parts question: an example of --task csv has no such part"):
        command.main(settings(home, tmp_path / "x.csv", "--task", "csv", "--parts", "question"))
    rows = [Sentence("1", "a\tb", "", "x")]
    with pytest.raises(UserError, match="cannot hold; write a"):
        list(written.table(Sentences(rows), ("text", "", "label"), ".tsv"))
