"""Questions about passages, answered: text to windows, windows to packed batches, logits to the best span.

    reader = Reader("engines/student")
    answer = reader.answer("Who wrote it?", "The notes were written by Ada Lovelace in 1843.")
    answer.text, answer.start, answer.end           # "Ada Lovelace", 26, 38: characters of the passage as it was given

Tokens, windows and the choice of the span are `data/`'s, the ones that trained the model, with the settings that the
engine folder has from the run: a question's tokens beyond `query` (usually 64) are cut off, as in training, and a long
passage becomes overlapping windows of `window` tokens. Nothing else is shortened.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from data.answers import Prediction
from data.squad import Example
from heads.span import Span
from serve.answerer import Answerer, Progress


@dataclass(frozen=True, slots=True)
class Answer:
    text: str  # "" where the model says that the passage has no answer
    start: int  # characters of the passage; start = end = 0 without an answer
    end: int  # exclusive
    score: float  # start logit + end logit of the best span, also where it was not given as the answer
    no_answer_score: float  # score of "no answer" minus `score`; above the engine's threshold there is none
    windows: int  # pieces that the passage was read in


class Reader(Answerer):
    """Answers from an engine folder. Safe to share between threads where its session is."""

    kind = Span

    def answer(self, question: str, context: str) -> Answer:
        """The answer to one question. Raises: UserError where question or context is empty or no text."""
        return self.answer_many([(question, context)])[0]

    def answer_many(self, pairs: Iterable[tuple[str, str]], progress: Progress | None = None) -> list[Answer]:
        """Answers to (question, context) pairs, in their order; a context that comes again is cut into tokens once.

        Raises: UserError for the first question or context that is empty or no text; nothing is answered then.
        """
        requests = [{"question": question, "context": context} for question, context in pairs]
        return [self.chosen(found) for found in self.predictions(requests, progress)]

    def chosen(self, found: Prediction) -> Answer:
        """The best span as the answer, or none where the engine's threshold says that the passage has none."""
        threshold = self.manifest.no_answer_threshold
        if threshold is not None and found.no_answer_score > threshold:
            return Answer("", 0, 0, found.score, found.no_answer_score, found.windows)
        return Answer(found.text, found.start, found.end, found.score, found.no_answer_score, found.windows)


def as_example(place: int, question: str, context: str) -> Example:
    """A question as `data/` takes them, called by its place. Raises: UserError where a text is empty or none."""
    return Span("squad").example({"question": question, "context": context}, place)
