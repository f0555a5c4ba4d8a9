"""Settings of `serve.py`; `python serve.py --help` prints them."""

from dataclasses import dataclass
from typing import Literal

from configs.errors import UsageError
from configs.options import setting
from serve.session import CONTEXTS, RUNTIMES, Session


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
        None, least=1, most=1024, help="ONNX Runtime's threads for one call; none: the process's cores over --calls"
    )
    calls: int | None = setting(
        None, least=1, most=64, help="ONNX Runtime's calls at a time on a CPU: with several of few threads a busy one "
        "does more, with one of many a question that comes alone is answered sooner. None: for a server as many as "
        "cores, 8 at the most, else one"
    )  # fmt: skip
    contexts: int = setting(
        CONTEXTS, least=1, most=8, help="TensorRT's execution contexts: batches at a time on a GPU, each with memory "
        "of its own. Two give more answers a second; with one an answer has the GPU for itself"
    )  # fmt: skip

    def open(self) -> Session:
        """The engine, opened as told. Raises: UserError as `Session.open`."""
        return Session.open(
            self.engine, self.runtime, list(self.providers) or None, threads=self.threads, calls=self.calls or 1,
            contexts=self.contexts,
        )  # fmt: skip


@dataclass(frozen=True)
class ServerConfig(EngineConfig):
    """Where the server listens, what it takes from a client, and how it makes batches."""

    port: int | None = setting(
        None, least=0, most=65535, help="answer over HTTP at this port until told to stop; 0 takes a free one"
    )
    host: str = setting("127.0.0.1", help="address to listen at; 0.0.0.0 or :: is every one of this machine")
    root: str | None = setting(
        None, help="folder whose engine folders may be loaded, swapped and unloaded over HTTP; needs --token-file"
    )
    load: tuple[str, ...] = setting((), help="engine folders below --root to load beside --engine at the start")
    token_file: str | None = setting(
        None, help="file with the secret that clients send as Authorization: Bearer SECRET; none: anyone may ask"
    )
    max_bytes: int = setting(1 << 20, least=1000, most=1 << 28, help="largest body of a request")
    max_characters: int = setting(
        100_000, least=10, most=10_000_000, help="of a request's texts together; more is refused before any work"
    )
    deadline_ms: float = setting(
        10_000.0, above=0.0, most=600_000.0, help="when a client gives up, unless its request says less"
    )
    token_budget: str = setting(
        "auto", help="tokens a batch; auto measures at the start what this device computes best, or a whole number"
    )
    most_sequences: int | None = setting(None, least=1, help="sequences a batch; none: as many as the engine takes")
    max_delay_ms: float = setting(2.0, least=0.0, most=1000.0, help="how long a batch waits for company, at the most")
    queue_tokens: int = setting(
        200_000, least=100, help="tokens that may wait for their turn; a request beyond them is told to come back"
    )
    tokenisers: int | None = setting(
        None, least=1, most=64, help="threads that cut text into tokens; none: half of the cores, 2 to 8"
    )
    drain_s: float = setting(30.0, above=0.0, most=3600.0, help="to finish what is under way once told to stop")
    workers: int | None = setting(
        None, least=1, most=64, help="processes that answer at the port, each on its GPU where there are several; a "
        "supervisor replaces one that dies or hangs. None: this process answers itself, without a supervisor"
    )  # fmt: skip
    hang_s: float = setting(
        30.0, least=1.0, most=3600.0, help="a worker that has not answered for so long is killed and replaced"
    )

    @property
    def batch_tokens(self) -> int | Literal["auto"]:
        """--token-budget as the batcher takes it. Raises: UsageError."""
        if self.token_budget == "auto":
            return "auto"
        if not self.token_budget.isascii() or not self.token_budget.isdecimal() or not 0 < int(self.token_budget) < 1e9:
            raise UsageError(f"--token-budget takes auto or a whole number from 1 on; got {self.token_budget!r}")
        return int(self.token_budget)

    def check_server(self) -> None:
        """Raises: UsageError where settings of the server do not go together."""
        if self.port is None:
            needless = [name for name in ("root", "load", "token_file", "workers") if getattr(self, name)]
            if needless:
                raise UsageError(f"--{needless[0].replace('_', '-')} goes with --port, which starts the server")
        if self.load and not self.root:
            raise UsageError("--load names folders below --root; give --root")
        if self.root and not self.token_file:
            raise UsageError("--root lets clients load engines, so they must show a secret: give --token-file")
        if self.root and self.workers:
            raise UsageError(
                "with --workers a load over HTTP would reach one of them alone; leave --root out, exchange the engine "
                "folder and send the supervisor SIGHUP"
            )
        _ = self.batch_tokens


@dataclass(frozen=True)
class ServeConfig(ServerConfig):
    """Ask an engine folder: one question or text, all examples of a file, or let whoever asks do so over HTTP.

    Examples:

      python serve.py --engine engines/student --question "Who wrote it?" --context "It was written by Ada Lovelace."
      python serve.py --engine engines/student --data dev-v1.1.json.gz --predictions answers.json
      python serve.py --engine engines/student --port 8000
      python serve.py --engine engines/mails --text "Where is my parcel?"
    """

    question: str | None = setting(None, help="a question about --context; beyond the run's --query tokens it is cut")
    context: str | None = setting(None, help="the passage to find the answer in; of any length")
    context_file: str | None = setting(None, help="the passage as a file of UTF-8 text, instead of --context")
    text: str | None = setting(None, help="a text to classify, tag or embed")
    second: str | None = setting(None, help="a second text, where the task has two, or to compare with --text")
    data: str | None = setting(None, help="examples to answer and score, of the engine's task, as train.py --dev takes")
    text_column: str | None = setting(None, help="with --data, the text's name in a table; none: the run's")
    second_column: str | None = setting(None, help="with --data, the second text's name; none: the run's")
    label_column: str | None = setting(None, help="with --data, the label's name; none: the run's")
    limit: int | None = setting(None, least=1, help="with --data: take so many examples only")
    predictions: str | None = setting(
        None, help="with --data: file to write predictions to, as JSON {id: prediction}; of squad the official format"
    )

    def __post_init__(self):
        self.check_server()
        passages = [name for name in ("context", "context_file") if getattr(self, name) is not None]
        asked = [name for name in ("question", "text", "second", *passages) if getattr(self, name) is not None]
        if self.data is not None:
            if asked:
                raise UsageError(f"--data brings its own examples; leave --{asked[0].replace('_', '-')} out")
            if self.port is not None:
                raise UsageError("--data and --port are two ways to ask; choose one")
            return
        if self.port is not None:
            if asked:
                raise UsageError(f"with --port requests come over HTTP; leave --{asked[0].replace('_', '-')} out")
            return
        if self.text is None and (self.question is None or len(passages) != 1):
            raise UsageError(
                "give --question with --context or --context-file, or --text, --data with a file of examples, or "
                "--port to answer whoever asks"
            )
        if self.text is not None and (self.question is not None or passages):
            raise UsageError("--text and --question are for different engines; give what this one's task needs")
        if self.limit or self.predictions:
            raise UsageError("--limit and --predictions go with --data")
