"""A class, or a number, for a text or two.

Classifier("engines/mails").classify("Where is my parcel?").label            # "delivery"
Classifier("engines/rte").classify("Ada wrote it.", "It was written.")       # label, score, probabilities
"""

from collections.abc import Iterable
from typing import Any

from heads.classify import Classify
from serve.answerer import Answerer, Progress


class Classifier(Answerer):
    """For engines of classification and regression."""

    kind = Classify

    def classify(self, text: str, second: str = "") -> Any:
        """A `heads.classify.Classification`, of a regression engine a float. Raises: UserError for an empty text."""
        return self.classify_many([(text, second)])[0]

    def classify_many(self, pairs: Iterable[tuple[str, str]], progress: Progress | None = None) -> list[Any]:
        """Of (text, second text or "") pairs, in their order."""
        return self.predictions([{"text": text, "second": second or None} for text, second in pairs], progress)
