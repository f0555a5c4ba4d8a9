"""Settings of `serve.py`; `python serve.py --help` prints them."""

from dataclasses import dataclass

from configs.errors import UsageError
from configs.options import setting
from serve.session import RUNTIMES


@dataclass(frozen=True)
class EngineConfig:
    """Which engine, and what runs it."""

    engine: str = setting(required=True, help="engine folder, written by export.py")
    runtime: str = setting(
        "auto",
        choices=RUNTIMES,
        help="tensorrt is the plan on a GPU, onnxruntime model.onnx on a CPU or GPU; auto takes the plan where it fits",
    )
    providers: tuple[str, ...] = setting(
        (), help="ONNX Runtime's execution providers, the best first; none: CUDA where it is installed, then the CPU"
    )
    threads: int | None = setting(
        None, least=1, most=1024, help="ONNX Runtime's threads for one call; none: the cores that the process may use"
    )


@dataclass(frozen=True)
class ServeConfig(EngineConfig):
    """Answer questions with an engine folder: one question, or all of a file.

    Examples:

      python serve.py --engine engines/student --question "Who wrote it?" --context "It was written by Ada Lovelace."
      python serve.py --engine engines/student --data dev-v1.1.json.gz --predictions answers.json
    """

    question: str | None = setting(None, help="a question about --context; beyond the run's --query tokens it is cut")
    context: str | None = setting(None, help="the passage to find the answer in; of any length")
    context_file: str | None = setting(None, help="the passage as a file of UTF-8 text, instead of --context")
    data: str | None = setting(
        None, help="questions to answer and score: SQuAD .json or .json.gz, tfds:squad, builtin:dev-facts ..."
    )
    limit: int | None = setting(None, least=1, help="with --data: take so many questions only")
    predictions: str | None = setting(
        None, help="with --data: file to write answers to, in the official format {id: text}"
    )

    def __post_init__(self):
        passages = [name for name in ("context", "context_file") if getattr(self, name) is not None]
        if self.data is not None:
            if self.question is not None or passages:
                raise UsageError("--data brings its own questions; leave --question and --context out")
            return
        if self.question is None or len(passages) != 1:
            raise UsageError("give --question with --context or --context-file, or --data with a file of questions")
        if self.limit or self.predictions:
            raise UsageError("--limit and --predictions go with --data")
