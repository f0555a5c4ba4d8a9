"""Entities of a text, and the tag of every word.

Tagger("engines/names").tag("Ada Lovelace lived in London.").entities
# (Entity(kind="PER", text="Ada Lovelace", start=0, end=12, score=0.99), Entity(kind="LOC", text="London", ...))
"""

from collections.abc import Iterable, Sequence

from heads.tag import Tag, Tagged
from serve.answerer import Answerer, Progress


class Tagger(Answerer):
    """For engines of tagging. Offsets are characters of the text as it was given, of any length."""

    kind = Tag

    def tag(self, text: str | Sequence[str]) -> Tagged:
        """Of a text, whose words are found here, or of a list of words. Raises: UserError for an empty one."""
        return self.tag_many([text])[0]

    def tag_many(self, texts: Iterable[str | Sequence[str]], progress: Progress | None = None) -> list[Tagged]:
        requests = [{"text": text} if isinstance(text, str) else {"words": list(text)} for text in texts]
        return self.predictions(requests, progress)
