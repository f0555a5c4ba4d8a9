"""The front end in NVIDIA Triton's Python backend: question and passage in, the answer out. Copied there as `model.py`.

It cuts the text into windows, asks the encoder (a model beside it, named by the parameter `encoder`) for the logits of
each, and chooses the span: with the packages `data` and `configs` that lie beside this file, the ones that trained the
model. All windows of all requests are asked for at once, so that Triton can put them into batches. Needs `numpy` and
`tokenizers` in the container.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
import triton_python_backend_utils as triton  # noqa: E402 # pyright: ignore[reportMissingImports]

from configs.errors import UserError  # noqa: E402
from data.answers import best_answers  # noqa: E402
from data.features import FeatureOptions, Features, featurise  # noqa: E402
from data.squad import Dataset, Example, clean  # noqa: E402
from data.tokenize import Tokenizer  # noqa: E402

LOGITS = ["start_logits", "end_logits"]


class TritonPythonModel:
    """What Triton asks for; the names are its own."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.encoder = parameters["encoder"]["string_value"]
        told = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_config(told["tokenizer"], HERE / "vocab.txt")
        self.options = FeatureOptions(told["window"], told["stride"], told["query"])
        self.max_answer_tokens: int = told["max_answer_tokens"]
        self.max_characters: int = told["max_characters"]
        self.no_answer_threshold: float | None = told["no_answer_threshold"]

    async def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request, in order; one that is no question gets an error of its own."""
        return await asyncio.gather(*(self._respond(request) for request in requests))

    async def _respond(self, request: Any) -> Any:
        try:
            question, context = self._text(request, "question"), self._text(request, "context")
            if len(question) + len(context) > self.max_characters:
                raise UserError(f"question and context have more than {self.max_characters:,} characters together")
            dataset = Dataset([Example("0", "", clean(context), clean(question), (), True)], "2.0", source="a request")
            features = featurise(dataset, self.tokenizer, self.options)
            logits = await asyncio.gather(*(self._logits(features, row) for row in range(len(features))))
            start, end = zip(*logits, strict=True)
            found = best_answers(features, dataset, start, end, max_answer_tokens=self.max_answer_tokens)["0"]
        except (UserError, UnicodeDecodeError) as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error)))
        limit = self.no_answer_threshold
        none = limit is not None and found.no_answer_score > limit
        text, first, last = ("", 0, 0) if none else (found.text, found.start, found.end)
        outputs = {
            "answer": np.array([text.encode()], object), "start": np.array([first], np.int32),
            "end": np.array([last], np.int32), "score": np.array([found.score], np.float32),
            "no_answer_score": np.array([found.no_answer_score], np.float32),
        }  # fmt: skip
        return triton.InferenceResponse([triton.Tensor(name, value) for name, value in outputs.items()])

    def _text(self, request: Any, name: str) -> str:
        values = triton.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
        text = values[0].decode() if len(values) == 1 else ""
        if not text.strip():
            raise UserError(f"{name} is empty; send a question and the passage that it is about, each as one string")
        return text

    async def _logits(self, features: Features, row: int) -> list[np.ndarray]:
        """Start and end logits of a window, float32 [its length] each."""
        window = features.assemble(np.array([row]), int(features.length[row]))  # [1, its length]
        inputs = {name: window[name] for name in ("token_ids", "segment_ids")}
        inputs["position_ids"] = np.arange(features.length[row], dtype=np.int32)[None]
        request = triton.InferenceRequest(
            model_name=self.encoder, requested_output_names=LOGITS,
            inputs=[triton.Tensor(name, np.ascontiguousarray(value, np.int32)) for name, value in inputs.items()],
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU),
        )  # fmt: skip
        response = await request.async_exec()
        if response.has_error():
            raise UserError(f"{self.encoder}: {response.error().message()}")
        return [triton.get_output_tensor_by_name(response, name).as_numpy().reshape(-1) for name in LOGITS]
