"""The front end in NVIDIA Triton's Python backend: a head's request in, its response out. Copied there as `model.py`.

It cuts the text into windows, asks the encoder (a model beside it, named by the parameter `encoder`) for the outputs of
each, and decodes them: with the packages `heads`, `data` and `configs` that lie beside this file, the ones that trained
the model. All windows of all requests are asked for at once, so that Triton can put them into batches. Needs `numpy`
and `tokenizers` in the container.
"""

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
import triton_python_backend_utils as triton  # noqa: E402 # pyright: ignore[reportMissingImports]

import heads  # noqa: E402
from configs.errors import UserError  # noqa: E402
from data.features import FeatureOptions  # noqa: E402
from data.tokenize import Tokenizer  # noqa: E402
from heads.head import characters  # noqa: E402

NUMBERS = {"whole": np.int32, "number": np.float32, "numbers": np.float32}  # the other kinds are strings


class TritonPythonModel:
    """What Triton asks for; the names are its own."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.encoder = parameters["encoder"]["string_value"]
        self.told = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))
        self.head = heads.of_run(SimpleNamespace(**self.told))
        self.tokenizer = Tokenizer.from_config(self.told["tokenizer"], HERE / "vocab.txt")
        self.options = FeatureOptions(self.told["window"], self.told["stride"], self.told["query"])

    async def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request, in order; one that is no request of the head gets an error of its own."""
        return await asyncio.gather(*(self._respond(request) for request in requests))

    async def _respond(self, request: Any) -> Any:
        try:
            fields = self._fields(request)
            if characters(fields) > self.told["max_characters"]:
                names = " and ".join(fields)
                raise UserError(f"{names} have more than {self.told['max_characters']:,} characters together")
            dataset = self.head.dataset([self.head.example(fields)])
            features = self.head.featurise(dataset, self.tokenizer, self.options)
            rows = await asyncio.gather(*(self._outputs(features, row) for row in range(len(features))))
            (found,) = self.head.decode(features, dataset, list(zip(*rows, strict=True))).values()
        except (UserError, UnicodeDecodeError) as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error)))
        response = self.head.response(found, self.told["no_answer_threshold"])
        if not self.head.gives:
            response = {name: response for name in self.told["gives"]}
        kinds = self.told["gives"].items()
        return triton.InferenceResponse([triton.Tensor(name, tensor(response, name, kind)) for name, kind in kinds])

    def _fields(self, request: Any) -> dict[str, Any]:
        """The head's fields that are there. Raises: UserError, UnicodeDecodeError."""
        found: dict[str, Any] = {}
        for name, field in self.head.fields.items():
            given = triton.get_input_tensor_by_name(request, name)
            if given is None:
                continue
            texts = [text.decode() for text in given.as_numpy().reshape(-1)]
            if not field.many and len(texts) != 1:
                raise UserError(f"{name} has {len(texts)} strings; send one")
            found[name] = texts if field.many else texts[0]
        return found

    async def _outputs(self, features: Any, row: int) -> list[np.ndarray]:
        """What the encoder gives for a window: float32 [its length, ...], or [...] of an output for the whole of it."""
        window = features.assemble(np.array([row]), int(features.length[row]))  # [1, its length]
        inputs = {name: window[name] for name in ("token_ids", "segment_ids")}
        inputs["position_ids"] = np.arange(features.length[row], dtype=np.int32)[None]
        request = triton.InferenceRequest(
            model_name=self.encoder, requested_output_names=self.told["outputs"],
            inputs=[triton.Tensor(name, np.ascontiguousarray(value, np.int32)) for name, value in inputs.items()],
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU),
        )  # fmt: skip
        response = await request.async_exec()
        if response.has_error():
            raise UserError(f"{self.encoder}: {response.error().message()}")
        return [triton.get_output_tensor_by_name(response, name).as_numpy()[0] for name in self.told["outputs"]]


def tensor(response: dict[str, Any], name: str, kind: str) -> np.ndarray:
    """A field of a response as `config.pbtxt` has it: [1], of numbers [n]; empty where it may be missing and is."""
    stem = kind.removesuffix("?")
    if name not in response:
        return np.zeros(0, NUMBERS.get(stem, object))
    value = response[name]
    if stem in NUMBERS:
        return np.array(value, NUMBERS[stem]).reshape(-1)
    return np.array([(json.dumps(value, ensure_ascii=False) if stem == "json" else value).encode()], object)
