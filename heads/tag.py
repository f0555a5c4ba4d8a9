"""A tag for every word (CoNLL): a number for every tag on a word's first piece; entities are put from words."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from configs.errors import UserError
from data import scores, sequences, tagged, written
from data.squad import clean
from data.tagged import Dataset, Example
from heads import pooling
from heads.head import Field, Head, Output, probabilities, text_of

MOST_WORDS = 100_000  # of a request
# What a free text is cut into: Chinese characters one by one, words with what joins them, every other mark alone.
_CJK = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff"
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])\w)+(?:['’\-](?:(?![{_CJK}])\w)+)*|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Entity:
    kind: str
    text: str
    start: int  # characters of the text as it was given
    end: int  # exclusive
    score: float  # mean probability of its words' tags


@dataclass(frozen=True, slots=True)
class Tagged:
    entities: tuple[Entity, ...]
    words: tuple[tuple[int, int], ...]  # characters of the text
    tags: tuple[str, ...]  # one a word
    scores: tuple[float, ...]  # probability of each tag


class Tag(Head):
    """Logits of C tags a token; a word is what its first piece says."""

    title = "tagging"
    tasks: ClassVar = ("conll",)
    score = "f1"
    writes = (".conll", ".txt", ".jsonl")
    architecture = "BertForTokenClassification"
    needs = 'a text, or "words" as a list'
    route, invites = "tag", "Tag a text"
    fields: ClassVar = {
        "text": Field("Text", "the text, whose words are found here", needed=False, long=True,
                      sample="Ada Lovelace met Charles Babbage in London in 1833."),
        "words": Field("Words", "or its words, as they are", needed=False, many=True),
    }  # fmt: skip
    gives: ClassVar = {"entities": "json", "words": "json"}

    # --- data

    def read(self, source, *, limit=None, split="train") -> Dataset:
        return tagged.read(source, limit=limit)

    def fit(self, dataset):
        found = tagged.labels(dataset.examples, dataset.source)
        return self if self.labels else type(self)(self.task, found, self.settings)

    def featurise(self, dataset, tokenizer, options, cache_dir=None, progress=None) -> sequences.Sequences:
        if not dataset.examples:
            raise UserError(f"{dataset.source}: no examples to make features from")
        return tagged.featurise(dataset, self.labels, tokenizer, options.window, options.stride, progress)

    def texts(self, dataset) -> list[str]:
        return list(dict.fromkeys(example.text for example in dataset.examples))

    def group(self, example) -> str:
        return example.text

    def augment(self, ways, dataset, candidates, **settings):
        return ways.augment_tagged(dataset, candidates, **settings)

    def file(self, dataset, kind):
        return written.words(dataset, kind)

    # --- model

    def shapes(self, config) -> dict[str, tuple[int, ...]]:
        if not self.labels:
            raise UserError(f"--task {self.task} has no tags yet; they come from training data or a run's config.json")
        return {"tagger.kernel": (config.hidden, len(self.labels)), "tagger.bias": (len(self.labels),)}

    def outputs(self, hidden) -> tuple[Output, ...]:
        return (Output("logits", "token", len(self.labels)),)

    def published(self, layout) -> dict[str, str]:
        if layout == "google":
            return {"tagger.kernel": "output_weights", "tagger.bias": "output_bias"}
        return {"tagger.kernel": "classifier.weight", "tagger.bias": "classifier.bias"}

    def forward(self, weights, x, padding_mask, drop):
        import tensorflow as tf

        return (tf.matmul(drop(x), weights["tagger.kernel"]) + weights["tagger.bias"],)  # [B, S, C]

    def loss(self, outputs, batch):
        """Mean cross-entropy of the row's words; pieces that begin no word count for nothing."""
        import tensorflow as tf

        counts = tf.cast(batch["tags"] >= 0, tf.float32)
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(batch["tags"], 0), outputs[0])  # [B, S]
        return tf.reduce_sum(each * counts, axis=1) / tf.maximum(tf.reduce_sum(counts, axis=1), 1.0)

    def soft_loss(self, student, teacher, batch, cross_entropy):
        """Mean over the row's real tokens, first pieces or not: the teacher has something to say on all of them."""
        import tensorflow as tf

        real = tf.cast(batch["padding_mask"], tf.float32)
        each = cross_entropy(student[0], teacher[0], tf.ones_like(student[0]))  # [B, S]
        return tf.reduce_sum(each * real, axis=1) / tf.maximum(tf.reduce_sum(real, axis=1), 1.0)

    def tail(self, writer, tensors, x, layout) -> None:
        pooling.dense(writer, "head/logits", x, tensors["tagger.kernel"], tensors["tagger.bias"], "tagger", "logits")

    # --- answers

    def decode(self, features, dataset, outputs) -> dict[str, Any]:
        found = {}
        for place, example in enumerate(dataset.examples):
            shares = probabilities(tagged.decided(features, outputs[0], place, len(example.words)))  # [words, C]
            best = shares.argmax(axis=1)
            tags = tuple(self.labels[index] for index in best)
            sure = tuple(shares.max(axis=1).tolist()) if len(best) else ()
            spans = []
            for kind, first, last in scores.entities(tags):
                start, end = example.words[first][0], example.words[last - 1][1]
                spans.append(Entity(kind, example.text[start:end], start, end, float(np.mean(sure[first:last]))))
            found[example.id] = Tagged(tuple(spans), example.words, tags, sure)
        return found

    def scores(self, dataset, predictions, threshold=None) -> np.ndarray:
        """[sentences, 3]: entities right, found, and true."""
        rows = []
        for example in dataset.examples:
            said, true = (set(scores.entities(tags)) for tags in (predictions[example.id].tags, example.tags))
            rows.append((len(said & true), len(said), len(true)))
        return np.array(rows, np.float64).reshape(-1, 3)

    def figures(self, rows) -> dict[str, float]:
        return scores.entity_f1(*rows.sum(axis=0))

    def said(self, prediction, threshold=None) -> Any:
        return [{"kind": e.kind, "text": e.text, "start": e.start, "end": e.end} for e in prediction.entities]

    # --- serving

    def example(self, fields, place=0) -> Example:
        """{"text"}, whose words are found here, or {"words"}: as they are, with a blank between them."""
        words = fields.get("words")
        if words is None:
            text = clean(text_of(fields, "text", place, self.needs))
            return Example(str(place), text, tuple(match.span() for match in _WORD.finditer(text)))
        if not isinstance(words, list) or not 0 < len(words) <= MOST_WORDS:
            raise UserError(f"words {place} is {str(words)[:40]!r}; needed is a list of 1 to {MOST_WORDS:,} words")
        if wrong := [word for word in words if not isinstance(word, str) or word.split() != [word]]:
            raise UserError(f"words {place} holds {wrong[0]!r}; needed are words without a blank in them")
        return Example.of_words(str(place), [clean(word) for word in words])

    def dataset(self, examples) -> Dataset:
        return Dataset(examples, "the texts given")

    def response(self, prediction, threshold=None) -> dict[str, Any]:
        """{"entities": [{"kind", "text", "start", "end", "score"}], "words": [{"start", "end", "tag", "score"}]}."""
        entities = [{name: getattr(e, name) for name in Entity.__slots__} for e in prediction.entities]
        rows = zip(prediction.words, prediction.tags, prediction.scores, strict=True)
        words = [{"start": span[0], "end": span[1], "tag": tag, "score": score} for span, tag, score in rows]
        return {"entities": entities, "words": words}

    def shown(self, example, prediction, threshold=None) -> tuple[str, int, int, list[str]]:
        lines = [f"{e.kind}: {e.text} ({e.start} to {e.end}, {e.score:.3f})" for e in prediction.entities]
        return example.text, 0, 0, lines or ["no entity"]


HEAD = Tag
