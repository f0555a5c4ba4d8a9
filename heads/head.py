"""What a head is: one entry that says a kind of task's data, features, loss, metric, ONNX tail and answers.

    read -> fit -> featurise         text to windows           (numpy; train, distill, export and serve alike)
    forward -> loss, soft_loss       encoder output to a loss  (TensorFlow, imported inside; train and distill)
    tail                             the same as ONNX          (onnx, imported inside; export)
    decode -> metrics                outputs to predictions    (numpy)
    fields, example                  a request's JSON to an example             (serve, Triton's front end)
    response, gives                  a prediction to a response's JSON

A new head is one file in this folder that defines a subclass as `HEAD`; nothing else in the project asks which task it
is. At the top of a head's file stands neither TensorFlow nor onnx: serve reads these files, too.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from configs.errors import UserError

Arrays = Sequence[np.ndarray]  # of one output: an array for every window
Progress = Callable[[int, int], None]  # (texts done, texts in all)


class Output(NamedTuple):
    """One output of a model with this head. Shapes without the batch: packed [T, width] or [B, width]."""

    name: str  # of the ONNX output
    per: str  # "token" or "sequence"
    width: int | None = None  # values each; None: a single one, without an axis of its own

    @property
    def key(self) -> str:
        """What a teacher's output is called in a batch, behind "teacher."."""
        return self.name.removesuffix("_logits")


class Field(NamedTuple):
    """One field of a request. A page makes a form of them, the server and Triton a description."""

    title: str  # above a form's field
    about: str  # in a description, after its name
    needed: bool = True
    many: bool = False  # a list of texts, which a form has no field for
    long: bool = False  # a form's field has several lines
    sample: str = ""  # what it begins with


class Head(ABC):
    """A kind of task, with the labels and settings of a run. See the methods for what an entry has to say.

    Args:
        task: as `--task` says it, one of `tasks`.
        labels: names of the classes in the order of the outputs; empty where there are none.
        settings: the values of `takes` that are not the defaults.
    """

    title: ClassVar[str]  # of the kind, for people
    tasks: ClassVar[tuple[str, ...]]  # names for --task
    score: str  # the metric that picks the best epoch, one of those of `metrics`
    groups: ClassVar[str] = "texts"  # what `group` names, for people
    takes: ClassVar[dict[str, Any]] = {}  # name of a setting -> its default; flags of train.py, kept in config.json
    together: ClassVar[int] = 1  # windows that make one training example: 2 where pairs are learnt from
    pretrained: ClassVar[tuple[str, ...]] = ()  # tensors that an encoder's pre-training leaves, rather than a task
    writes: tuple[str, ...] = ()  # endings of what `file` writes
    parts: ClassVar[tuple[str, ...]] = ()  # of an example, which `augment` can vary alone
    builtin: ClassVar[str | None] = None  # examples that need no file, for export's comparison
    needs: ClassVar[str] = "a text"  # what a request must hold, for an error
    route: ClassVar[str] = ""  # POST /ROUTE answers requests; "": the name of its first task
    invites: ClassVar[str] = "Ask the engine"  # over the page's form
    fields: ClassVar[dict[str, Field]] = {"text": Field("Text", "the text", long=True)}
    # Field of a response -> "text", "whole", "number", "numbers" (one axis) or "json", with "?" behind it where it may
    # be missing. {}: the response is one piece of JSON.
    gives: ClassVar[dict[str, str]] = {}
    most_runners_up: ClassVar[int] = 0  # predictions beside the best one that a request may ask for

    def __init__(self, task: str, labels: Sequence[str] = (), settings: Mapping[str, Any] | None = None) -> None:
        self.task, self.labels = task, tuple(labels)
        chosen = {name: value for name, value in (settings or {}).items() if value is not None}
        if unknown := chosen.keys() - self.takes.keys():
            raise UserError(f"--task {task} has no setting {sorted(unknown)}; it has {sorted(self.takes) or 'none'}")
        self.settings: dict[str, Any] = {**self.takes, **chosen}

    # --- data ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, source: str, *, limit: int | None = None, split: str = "train") -> Any:
        """A data set: `.examples` (each with `.id`), `.source`, `.skipped` (reasons), `.version`. Raises: UserError."""

    def fit(self, dataset: Any) -> Self:
        """This head with the labels of a training set. Raises: UserError where nothing can be learnt from them."""
        return self

    @abstractmethod
    def featurise(
        self, dataset: Any, tokenizer: Any, options: Any, cache_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Any:  # fmt: skip
        """Windows of token ids: `data/features.Features`, or `data/sequences.Sequences`."""

    def group(self, example: Any) -> str:
        """What must not be parted when some examples are set aside."""
        return example.id

    @abstractmethod
    def texts(self, dataset: Any) -> list[str]:
        """The distinct texts of a data set, to learn from without labels."""

    def augment(self, ways: Any, dataset: Any, candidates: Any, **settings: Any) -> tuple[Any, Any]:
        """(the data set with varied copies, a report). `ways` is distill/augment_rows.py, whose imports go here.

        Raises: UserError where a task's text cannot be varied.
        """
        raise UserError(f"--augment: the text of --task {self.task} cannot be varied; leave it out")

    def file(self, dataset: Any, kind: str) -> Iterator[str]:
        """A data set as text, in pieces, of a file that `read` gives back; kind: one of `writes`."""
        raise UserError(f"data of --task {self.task} is not written, only read")

    # --- model --------------------------------------------------------------------------------------------------

    @abstractmethod
    def shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Our name of each of the head's tensors -> its shape, for an encoder of `config`'s sizes."""

    @abstractmethod
    def outputs(self, hidden: int) -> tuple[Output, ...]:
        """What the model gives for an encoder `hidden` wide, in order."""

    def published(self, layout: str) -> dict[str, str]:
        """Our name -> the tensor's in a "hugging_face" or "google" checkpoint; {bert} is the encoder's prefix.

        Hugging Face keeps kernels as [outputs, inputs], as Google does where a name ends in output_weights.
        """
        return {}

    architecture: ClassVar[str] = ""  # class of transformers that reads this head; "": none

    @abstractmethod
    def forward(self, weights: Mapping[str, Any], x: Any, padding_mask: Any, drop: Callable) -> tuple:
        """TensorFlow: encoder output float32 [B, S, H], mask int32 [B, S] -> outputs, float32 [B, S, ...] or [B, ...].

        weights: name -> variable, float32. drop: dropout of the run, the identity where nothing is learnt.
        """

    @abstractmethod
    def loss(self, outputs: tuple, batch: Mapping[str, Any]) -> Any:
        """TensorFlow: what the true labels of a batch cost, float32 [B]."""

    def soft_loss(self, student: tuple, teacher: tuple, batch: Mapping[str, Any], cross_entropy: Callable) -> Any:
        """TensorFlow: what differs from the teacher's outputs, float32 [B]; by default the mean squared difference.

        cross_entropy: (student, teacher logits [..., C], mask [..., C]) -> [...], softened by the run's temperature.
        """
        import tensorflow as tf

        parts = [tf.square(tf.cast(mine, tf.float32) - theirs) for mine, theirs in zip(student, teacher, strict=True)]
        return tf.add_n([tf.reduce_mean(tf.reshape(part, (tf.shape(part)[0], -1)), axis=1) for part in parts])

    @abstractmethod
    def tail(self, writer: Any, tensors: Mapping[str, np.ndarray], x: str, layout: str) -> None:
        """ONNX: write what follows the encoder's last tensor `x` with `export/graph.py`'s writer.

        Every output is made by a node "head/NAME" whose output is NAME.
        """

    # --- answers ------------------------------------------------------------------------------------------------

    @abstractmethod
    def decode(self, features: Any, dataset: Any, outputs: Sequence[Arrays]) -> dict[str, Any]:
        """Example's id -> prediction. outputs: for each output an array for every window, without padding."""

    @abstractmethod
    def scores(self, dataset: Any, predictions: Mapping[str, Any], threshold: float | None = None) -> np.ndarray:
        """[examples, k]: what each example contributes to the metrics."""

    @abstractmethod
    def figures(self, scores: np.ndarray) -> dict[str, float]:
        """The metrics, in percent, of some rows of `scores`."""

    def metrics(self, dataset: Any, predictions: Mapping[str, Any], threshold: float | None = None) -> dict[str, float]:
        """The metrics of all examples, and "total". threshold: of "no answer", where the task knows one."""
        return self.figures(self.scores(dataset, predictions, threshold)) | {"total": len(dataset.examples)}

    @abstractmethod
    def said(self, prediction: Any, threshold: float | None = None) -> Any:
        """A prediction as JSON for a file of predictions; two that are equal mean the same to a user."""

    def same(self, one: Any, other: Any) -> bool:
        """Whether two of `said` mean the same to a user."""
        return one == other

    def misread(self, outputs: Sequence[Arrays]) -> dict[str, tuple[Sequence[Arrays], str]]:
        """Ways in which a teacher's head may have been misread: what is wrong -> (outputs put right, the cure)."""
        return {}

    # --- serving ------------------------------------------------------------------------------------------------

    @abstractmethod
    def example(self, fields: Mapping[str, Any], place: int = 0) -> Any:
        """An example whose id is `place` from a request's fields (JSON, or a command line's flags).

        Raises: UserError where a field is missing, empty or no text.
        """

    @classmethod
    def path(cls) -> str:
        """The route, as "/answer"."""
        return "/" + (cls.route or cls.tasks[0].replace("/", "-"))

    def proof(self) -> dict[str, Any]:
        """A request that an engine answers if it works at all."""
        asked = [name for name, field in self.fields.items() if field.needed] or list(self.fields)[:1]
        return dict.fromkeys(asked, "Is it ready?")

    @abstractmethod
    def dataset(self, examples: list) -> Any:
        """Examples of requests as a data set."""

    @abstractmethod
    def response(self, prediction: Any, threshold: float | None = None) -> dict[str, Any]:
        """A prediction as the JSON of a response."""

    def runners_up(self, features: Any, dataset: Any, outputs: Sequence[Arrays], most: int) -> list[dict[str, Any]]:
        """What came next for the one example of a data set, as JSON; at most `most`, up to `most_runners_up`."""
        return []

    def shown(self, example: Any, prediction: Any, threshold: float | None = None) -> tuple[str, int, int, list[str]]:
        """For a person: (a text, first and last character to be marked in it, lines below it)."""
        lines = [f"{name}: {value}" for name, value in self.response(prediction, threshold).items()]
        return "", 0, 0, lines


def characters(fields: Mapping[str, Any]) -> int:
    """Of all texts of a request."""
    texts = [text for value in fields.values() for text in (value if isinstance(value, list) else [value])]
    return sum(len(text) for text in texts if isinstance(text, str))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of the last axis in float64; a NaN counts as the least."""
    wide = np.nan_to_num(np.asarray(logits, np.float64), nan=-1e8, posinf=1e8, neginf=-1e8)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def text_of(fields: Mapping[str, Any], name: str, place: int, needs: str, default: str | None = None) -> str:
    """A field that must be text that is not blank. Raises: UserError."""
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        seen = f"is {type(value).__name__}, needed is text" if name in fields else "is missing"
        raise UserError(f"{name} {place} {seen}; give {needs}")
    if not value.strip():
        raise UserError(f"{name} {place} is empty; give {needs}")
    return value
