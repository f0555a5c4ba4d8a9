"""Words with tags: files read, pieces aligned to words, long sentences cut into windows and put together again."""

import numpy as np
import pytest
from data_kit import letters
from task_kit import write_conll, write_jsonl

from configs.errors import UserError
from data import tagged
from data.tagged import Example, first_pieces
from distill.augment_rows import augment_sentences, augment_tagged
from heads import find
from heads.head import Output

SENTENCES = [[("Ada", "B-PER"), ("Byron", "I-PER"), ("left", "O")], [("Oslo", "B-LOC"), (".", "O")]]
NAMES = ("O", "B-LOC", "B-PER", "I-PER")


def test_both_kinds_of_file_hold_the_same_sentences(tmp_path):
    conll = tagged.read(str(write_conll(tmp_path / "a.conll", SENTENCES))).examples
    rows = [dict(zip(("tokens", "tags"), map(list, zip(*one, strict=True)), strict=True)) for one in SENTENCES]
    lines = tagged.read(str(write_jsonl(tmp_path / "a.jsonl", rows))).examples
    assert [(e.text, e.tags) for e in conll] == [(e.text, e.tags) for e in lines]
    assert (conll[0].text, conll[0].words) == ("Ada Byron left", ((0, 3), (4, 9), (10, 14)))
    (tmp_path / "b.conll").write_text("# a remark\nAda B-PER\nleft O\n\n\n-DOCSTART- O\n\nOslo B-LOC", encoding="utf-8")
    assert [e.text for e in tagged.read(str(tmp_path / "b.conll")).examples] == ["Ada left", "Oslo"]
    assert tagged.labels(conll, "x") == NAMES


BAD = {
    "a tag that is missing": ("a.conll", "Ada B-PER\nleft\n",
                              r"line 2: 1 columns, the lines before have 2 \('left'\); a tag may be"),
    "words without tags": ("a.conll", "Ada\nleft\n", "line 1: 1 columns, needed are a word and its tag"),
    "tags that don't align with words": ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}',
                                         "line 1: 2 tokens and 1 tags do not align"),
    "a token with a blank": ("a.jsonl", '{"tokens": ["a b"], "tags": ["O"]}', "the token 'a b' holds a blank"),
    "tags that are numbers": ("a.jsonl", '{"tokens": ["a"], "tags": [0]}', "'tags' is .0.; needed is a list of words"),
    "no sentence": ("a.conll", "\n\n", "has no sentence; needed is a CoNLL file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_its_line(case, tmp_path):
    name, content, said = BAD[case]
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        tagged.read(str(tmp_path / name))


def test_one_tag_only_and_tags_never_seen_are_refused(tmp_path):
    head = find("conll")
    same = head.dataset([Example.of_words("1", ["a"], ["O"])])
    with pytest.raises(UserError, match="has one tag only, 'O'; there is nothing to tell apart"):
        head.fit(same)
    strange = head.dataset([Example.of_words("7", ["a"], ["B-ORG"])])
    with pytest.raises(UserError, match=r"the tag 'B-ORG' \(in the sentence of line 7\) was never seen in training"):
        tagged.featurise(strange, NAMES, letters(tmp_path), 16, 4)


def test_a_word_is_its_first_piece_and_one_without_pieces_is_outside(tmp_path):
    example = Example.of_words("1", ["ab", "\u200b", "c."], ["B-PER", "I-PER", "O"])
    dataset = tagged.Dataset([example])
    features = tagged.featurise(dataset, NAMES, letters(tmp_path), 16, 4)
    assert features.places.tolist() == [-1, 0, -1, 2, -1, -1]  # [CLS] a ##b c . [SEP]
    assert features.token_labels["tags"].tolist() == [-1, 2, -1, 0, -1, -1]
    logits = np.tile(np.array([0, 0, 1, 0], np.float32), (6, 1))
    assert tagged.decided(features, [logits], 0, 3).argmax(axis=1).tolist() == [2, 0, 2]
    assert first_pieces(np.zeros((0, 2), int), example.words).tolist() == []
    # a piece that lies outside of every word, in a text whose words somebody gave
    assert first_pieces(np.array([[0, 1], [2, 3]]), [(2, 3)]).tolist() == [-1, 0]


@pytest.mark.parametrize("words", [1, 14, 15, 40, 41])
def test_whatever_a_window_cuts_every_word_is_decided_where_most_stands_around_it(tmp_path, words):
    """14 tokens fit; windows start 4 apart. Each window claims every word for itself: only one is believed."""
    example = Example.of_words("1", ["a"] * words, None)
    features = tagged.featurise(tagged.Dataset([example]), NAMES, letters(tmp_path), 16, 4)
    said = [np.full((length, len(features)), -1.0, np.float32) for length in features.length]
    for window, logits in enumerate(said):
        logits[:, window] = 1.0
    chosen = tagged.decided(features, said, 0, words).argmax(axis=1)
    assert (np.diff(chosen) >= 0).all()
    starts = np.arange(len(features)) * 4
    counts = features.length - 2
    assert counts[-1] + starts[-1] == words
    for word, window in enumerate(chosen):
        around = [
            min(word - s, s + n - 1 - word) if s <= word < s + n else -1 for s, n in zip(starts, counts, strict=True)
        ]
        assert around[window] == max(around)


def test_an_entity_over_the_edge_of_a_window_stays_whole(tmp_path):
    head = find("conll", NAMES)
    tags = ["O"] * 10 + ["B-PER"] + ["I-PER"] * 12 + ["O"] * 6  # longer than a window's stride, cut by each of them
    example = Example.of_words("0", ["a"] * len(tags), tags)
    dataset = head.dataset([example])
    features = tagged.featurise(dataset, NAMES, letters(tmp_path), 16, 4)
    index = np.array([NAMES.index(tag) for tag in tags])
    logits = [np.eye(4, dtype=np.float32)[index[np.maximum(places, 0)]] * 9
              for places in np.split(features.places, features.start[1:-1])]  # fmt: skip
    found = head.decode(features, dataset, [logits])["0"]
    assert [(e.kind, e.start, e.end) for e in found.entities] == [("PER", 20, 45)]
    assert head.metrics(dataset, {"0": found})["f1"] == 100


def fruit(texts, places, most, progress=None):
    return [("plum", "fig")[:most] for _ in places]


def test_varied_copies_keep_labels_entities_and_the_number_of_words():
    head = find("conll", NAMES)
    dataset = head.dataset([Example.of_words("1", ["Ada", "ate", "green", "apples"], ["B-PER", "O", "O", "O"])])
    larger, report = head.augment(_ways(), dataset, fruit, copies=3, probability=0.9, seed=1)
    assert report.copies == len(larger.examples) - 1 > 0
    for example in larger.examples[1:]:
        words = example.text.split()
        assert (words[0], len(words), example.tags) == ("Ada", 4, ("B-PER", "O", "O", "O"))
        assert example.text != dataset.examples[0].text
    pairs = find("glue/rte").dataset([_pair("green apples", "red apples", "entailment")])
    larger, _ = augment_sentences(pairs, fruit, copies=2, probability=0.9, seed=1)
    assert {e.label for e in larger.examples} == {"entailment"}
    assert all(e.first == "green apples" or e.second == "red apples" for e in larger.examples)  # each from its own row
    two = lambda texts, places, most, progress=None: [("two words",)] * len(places)  # noqa: E731
    _, report = augment_tagged(dataset, two, copies=2, probability=0.9, seed=1)
    assert (report.copies, report.lost) == (0, 2)


def _ways():
    from distill import augment_rows

    return augment_rows


def _pair(first, second, label):
    from data.sentences import Example as Pair

    return Pair("1", first, second, label)


def test_outputs_name_their_keys():
    assert [output.key for output in (Output("start_logits", "token"), Output("logits", "token"))] == [
        "start",
        "logits",
    ]
