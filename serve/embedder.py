"""A vector of length 1 for a text; two texts are as similar as the product of theirs.

vectors = Embedder("engines/minilm").embed(["A man eats.", "Someone has lunch."])      # float32 [2, H]
vectors @ vectors.T
"""

from collections.abc import Iterable

import numpy as np

from heads.embed import Embed
from serve.answerer import Answerer, Progress


class Embedder(Answerer):
    """For engines of sentence embeddings."""

    kind = Embed

    def embed(self, texts: Iterable[str], progress: Progress | None = None) -> np.ndarray:
        """float32 [texts, H]. A text beyond the window is cut off. Raises: UserError for an empty text."""
        found = self.predictions([{"text": text} for text in texts], progress)
        return (
            np.stack([one.vectors[0] for one in found]) if found else np.zeros((0, self.manifest.sizes["hidden"]), "f4")
        )

    def similarity(self, first: str, second: str) -> float:
        """The cosine of two texts, -1 to 1."""
        return float(self.predictions([{"text": first, "second": second}])[0].similarity)
