"""Any engine, asked: requests to examples, windows, packed batches, outputs and predictions, as its head says.

    with Answerer("engines/mails") as engine:
        engine.respond([{"text": "Where is my parcel?"}])       # [{"label": "delivery", "score": 0.98, ...}]

`serve/reader.py`, `classifier.py`, `tagger.py` and `embedder.py` are the same with methods named for what they do.
Tokens, windows and decoding are those that trained the model, with the settings that the engine has from the run.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from configs.errors import UserError
from data.features import FeatureOptions
from data.tokenize import Tokenizer
from heads import Head
from serve.manifest import VOCABULARY
from serve.packed import Packed, cut
from serve.session import Session

Progress = Callable[[int, int], None]  # (windows done, windows in all)


class Answerer:
    """Predictions from an engine folder. Safe to share between threads where its session is."""

    kind: ClassVar[type[Head]] = Head  # whose engines it takes

    def __init__(self, folder: str | Path, runtime: str = "auto", *, session: Session | None = None) -> None:
        """Args:
            folder, runtime: see `Session.open`.
            session: an open session to use instead; it is then the caller's to close.
        Raises: UserError where the folder is damaged, is for another kind of task, or the runtime asked for does not
            fit.
        """
        self._own = session is None
        self.session = session or Session.open(folder, runtime)
        manifest = self.manifest = self.session.manifest
        self.head = manifest.entry
        if not isinstance(self.head, self.kind):
            self.close()
            raise UserError(
                f"{manifest.folder} is an engine for --task {manifest.task} ({self.head.title}), which "
                f"{type(self).__name__} does not do; take serve.answerer.Answerer, or an engine for {self.kind.title}"
            )
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

    def respond(self, requests: Iterable[Mapping[str, Any]], progress: Progress | None = None) -> list[dict[str, Any]]:
        """A response for every request, both as JSON has them (`Head.example`, `Head.response`), in their order.

        Raises: UserError for the first request that is none; nothing is answered then.
        """
        threshold = self.manifest.no_answer_threshold
        return [self.head.response(found, threshold) for found in self.predictions(requests, progress)]

    def predictions(self, requests: Iterable[Mapping[str, Any]], progress: Progress | None = None) -> list[Any]:
        """The head's predictions for requests, in their order, before any no-answer threshold."""
        examples = [self.head.example(fields, place) for place, fields in enumerate(requests)]
        if not examples:
            return []
        dataset = self.head.dataset(examples)
        found = self.predict(dataset, self.features(dataset), progress)
        return [found[example.id] for example in examples]

    def features(self, dataset: Any, progress: Progress | None = None) -> Any:
        """The windows of a data set, cut as in training; `progress` counts texts."""
        return self.head.featurise(dataset, self.tokenizer, self.options, progress=progress)

    def predict(self, dataset: Any, features: Any, progress: Progress | None = None) -> dict[str, Any]:
        """Example's id -> prediction, before any no-answer threshold."""
        return self.head.decode(features, dataset, self.logits(features, progress))

    def logits(self, features: Any, progress: Progress | None = None) -> tuple[list[np.ndarray], ...]:
        """Of each of the head's outputs: float32 arrays of all windows, in the order of the features."""
        found: tuple[list, ...] = tuple([None] * len(features) for _ in self.manifest.outputs)
        lengths = features.length
        groups, done = self.batches(lengths), 0
        outputs = self.session.stream(Packed.windows(features, rows) for rows in groups)
        for rows, logits in zip(groups, outputs, strict=True):
            for row, parts in zip(rows, self.session.split(logits, lengths[rows]), strict=True):
                for whole, part in zip(found, parts, strict=True):
                    whole[row] = part
            done += len(rows)
            if progress:
                progress(done, len(features))
        return found

    def batches(self, lengths: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Windows of these lengths in batches that the engine takes, as large as its session likes them: rows [B]."""
        most, padded = self.manifest.profile.batch.most, self.manifest.layout == "padded"
        return cut(lengths, self.session.batch_tokens, most, padded=padded)

    def close(self) -> None:
        if self._own:
            self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
