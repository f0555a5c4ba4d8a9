"""Questions about passages, answered: text to windows, windows to packed batches, logits to the best span.

    reader = Reader("engines/student")
    answer = reader.answer("Who wrote it?", "The notes were written by Ada Lovelace in 1843.")
    answer.text, answer.start, answer.end           # "Ada Lovelace", 26, 38: characters of the passage as it was given

Tokens, windows and the choice of the span are `data/`'s, the ones that trained the model, with the settings that the
engine folder has from the run: a question's tokens beyond `query` (usually 64) are cut off, as in training, and a long
passage becomes overlapping windows of `window` tokens. Nothing else is shortened.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from configs.errors import UserError
from data.answers import Prediction, best_answers
from data.features import FeatureOptions, Features, featurise
from data.squad import Dataset, Example, clean
from data.tokenize import Tokenizer
from serve.manifest import VOCABULARY
from serve.packed import Packed, cut
from serve.session import Session, Ticket

Progress = Callable[[int, int], None]  # (windows done, windows in all)


@dataclass(frozen=True, slots=True)
class Answer:
    text: str  # "" where the model says that the passage has no answer
    start: int  # characters of the passage; start = end = 0 without an answer
    end: int  # exclusive
    score: float  # start logit + end logit of the best span, also where it was not given as the answer
    no_answer_score: float  # score of "no answer" minus `score`; above the engine's threshold there is none
    windows: int  # pieces that the passage was read in


class Reader:
    """Answers from an engine folder. Safe to share between threads where its session is."""

    def __init__(self, folder: str | Path, runtime: str = "auto", *, session: Session | None = None) -> None:
        """Args:
            folder, runtime: see `Session.open`.
            session: an open session to use instead; it is then the caller's to close.
        Raises: UserError where the folder is damaged, or the runtime asked for does not fit.
        """
        self._own = session is None
        self.session = session or Session.open(folder, runtime)
        manifest = self.manifest = self.session.manifest
        self.tokenizer = Tokenizer.from_config(manifest.tokenizer, manifest.folder / VOCABULARY)
        if self.tokenizer.size > manifest.sizes["vocabulary"]:
            raise UserError(
                f"{manifest.folder / VOCABULARY} has {self.tokenizer.size} pieces, the model knows "
                f"{manifest.sizes['vocabulary']}; export the engine again with the checkpoint's own vocab.txt"
            )
        self.options = FeatureOptions(manifest.window, manifest.stride, manifest.query)
        if manifest.window > manifest.longest:
            raise UserError(
                f"windows of {manifest.window} tokens do not fit this engine, which takes up to {manifest.longest}; "
                f"export it with --max-length {manifest.window}"
            )

    def answer(self, question: str, context: str) -> Answer:
        """The answer to one question. Raises: UserError where question or context is empty or no text."""
        return self.answer_many([(question, context)])[0]

    def answer_many(self, pairs: Iterable[tuple[str, str]], progress: Progress | None = None) -> list[Answer]:
        """Answers to (question, context) pairs, in their order; a context that comes again is cut into tokens once.

        Raises: UserError for the first question or context that is empty or no text; nothing is answered then.
        """
        examples = [as_example(place, *pair) for place, pair in enumerate(pairs)]
        if not examples:
            return []
        dataset = Dataset(examples, "2.0", source="the questions given")
        found = self.predict(dataset, self.features(dataset), progress)
        return [self.chosen(found[example.id]) for example in examples]

    def features(self, dataset: Dataset, progress: Progress | None = None) -> Features:
        """The windows of a data set, cut as in training; `progress` counts texts."""
        return featurise(dataset, self.tokenizer, self.options, progress=progress)

    def predict(self, dataset: Dataset, features: Features, progress: Progress | None = None) -> dict[str, Prediction]:
        """Question id -> best span, before any no-answer threshold."""
        start, end = self.logits(features, progress)
        limit = self.manifest.max_answer_tokens
        return best_answers(features, dataset, start, end, max_answer_tokens=limit)

    def logits(self, features: Features, progress: Progress | None = None) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Start and end logits of every window, float32 [its length] each, in the order of the features."""
        start: list = [None] * len(features)
        end: list = [None] * len(features)
        done, under_way = 0, list[tuple[np.ndarray, Ticket]]()

        def fetch() -> None:
            nonlocal done
            rows, ticket = under_way.pop(0)
            edges = np.cumsum(features.length[rows])[:-1]
            for whole, flat in zip((start, end), self.session.result(ticket), strict=True):
                for row, part in zip(rows, np.split(flat, edges), strict=True):
                    whole[row] = part
            done += len(rows)
            if progress:
                progress(done, len(features))

        for rows in self.batches(features.length):
            under_way.append((rows, self.session.submit(Packed.windows(features, rows))))
            if len(under_way) > 1:  # while this batch is computed, the one before it is taken out
                fetch()
        while under_way:
            fetch()
        return start, end

    def batches(self, lengths: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Windows of these lengths in batches that the engine takes, as large as its session likes them: rows [B]."""
        most, padded = self.manifest.profile.batch.most, self.manifest.layout == "padded"
        return cut(lengths, self.session.batch_tokens, most, padded=padded)

    def chosen(self, found: Prediction) -> Answer:
        """The best span as the answer, or none where the engine's threshold says that the passage has none."""
        threshold = self.manifest.no_answer_threshold
        if threshold is not None and found.no_answer_score > threshold:
            return Answer("", 0, 0, found.score, found.no_answer_score, found.windows)
        return Answer(found.text, found.start, found.end, found.score, found.no_answer_score, found.windows)

    def close(self) -> None:
        if self._own:
            self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def as_example(place: int, question: str, context: str) -> Example:
    """A question as `data/` takes them, called by its place. Raises: UserError where a text is empty or none."""
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str):
            raise UserError(f"{name} {place} is {type(text).__name__}, needed is text")
        if not text.strip():
            raise UserError(f"{name} {place} is empty; give a question and the passage that it is about")
    return Example(str(place), "", clean(context), clean(question), (), True)
