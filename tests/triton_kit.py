"""Triton's Python backend as far as our front end uses it, and its dynamic batcher as config.pbtxt describes it."""

import asyncio
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import export_kit
import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as messages

from export import triton


def config(models: Path, name: str) -> Any:
    """config.pbtxt as Triton's own message; a field that it does not know is an error."""
    return text_format.Parse((models / name / "config.pbtxt").read_text(), messages.ModelConfig())  # type: ignore[attr-defined]


class Error(Exception):
    def message(self) -> str:
        return str(self)


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> np.ndarray:
        return self.values


class Response:
    def __init__(self, outputs: list[Tensor] = (), error: Error | None = None) -> None:  # type: ignore[assignment]
        self.outputs, self.failure = list(outputs), error

    def has_error(self) -> bool:
        return self.failure is not None

    def error(self) -> Error | None:
        return self.failure


class FakeTriton(types.ModuleType):
    """Triton's module for its Python backend, and the dynamic batcher as the repository's messages describe it."""

    TRITONSERVER_MEMORY_CPU = 0
    Tensor, InferenceResponse, TritonError = Tensor, Response, Error
    PreferredMemory = staticmethod(lambda kind: kind)

    def __init__(self, models: Path) -> None:
        super().__init__("triton_python_backend_utils")
        self.models, self.waiting, self.batches = models, list[tuple[Any, asyncio.Future]](), list[int]()
        waiting, settle = self.waiting, self.settle

        class InferenceRequest:
            def __init__(self, model_name, requested_output_names, inputs, preferred_memory) -> None:
                self.model, self.outputs, self.inputs = model_name, requested_output_names, inputs

            async def async_exec(self) -> Any:
                future = asyncio.get_running_loop().create_future()
                waiting.append((self, future))
                await asyncio.sleep(0)
                settle()
                return await future

        self.InferenceRequest = InferenceRequest

    @staticmethod
    def get_input_tensor_by_name(request: Any, name: str) -> Any:
        return next((tensor for tensor in request.inputs if tensor.name == name), None)

    @staticmethod
    def get_output_tensor_by_name(response: Any, name: str) -> Any:
        return next(tensor for tensor in response.outputs if tensor.name == name)

    def settle(self) -> None:
        """Compute what waits, in ragged batches: rows behind each other, the counts written by the batcher."""
        while self.waiting:
            stated = config(self.models, self.waiting[0][0].model)
            taken = [self.waiting.pop(0) for _ in range(min(len(self.waiting), stated.max_batch_size))]
            rows: dict[str, np.ndarray] = {}
            for item in stated.input:
                parts = [self.get_input_tensor_by_name(request, item.name).values for request, _ in taken]
                assert all(part.dtype == np.int32 and part.ndim == 2 and len(part) == 1 for part in parts)
                rows[item.name] = np.concatenate([part[0] for part in parts])
            counts = [self.get_input_tensor_by_name(request, "token_ids").values.size for request, _ in taken]
            rows[stated.batch_input[0].target_name[0]] = np.cumsum([0, *counts]).astype(np.int32)
            model = self.models / stated.name / "1" / stated.default_model_filename
            outputs = export_kit.compute(model, rows)
            self.batches.append(len(taken))
            scattered = {name for item in stated.batch_output for name in item.target_name}
            for place, (_, future) in enumerate(taken):
                parts = []
                for item, output in zip(stated.output, outputs, strict=True):
                    assert len(item.dims) == output.ndim - (item.name not in scattered)
                    edges = np.cumsum(counts)[:-1] if item.name in scattered else np.arange(1, len(taken))
                    part = np.split(output, edges)[place]
                    parts.append(part[None] if item.name in scattered else part)
                named = zip((item.name for item in stated.output), parts, strict=True)
                future.set_result(Response([Tensor(name, part) for name, part in named]))


def opened(models: Path, name: str, monkeypatch) -> tuple[FakeTriton, Any]:
    """A repository's front end. Its copies of our packages are gone from the table of modules afterwards."""
    fake = FakeTriton(models)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def take_ours() -> dict[str, Any]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in triton.SOURCES}

    kept = take_ours()
    try:
        spec = importlib.util.spec_from_file_location("front_end", models / name / "1" / "model.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert str(models) in module.heads.__file__
        model = module.TritonPythonModel()
        stated = config(models, name).parameters
        parameters = {key: {"string_value": value.string_value} for key, value in stated.items()}
        model.initialize({"model_config": json.dumps({"parameters": parameters})})
    finally:
        take_ours()
        sys.modules.update(kept)
    return fake, model


def request_of(fields: dict[str, Any]) -> Any:
    """A request's tensors, of strings or of bytes."""
    rows = {name: value if isinstance(value, list) else [value] for name, value in fields.items()}
    raw = {name: [text.encode() if isinstance(text, str) else text for text in row] for name, row in rows.items()}
    return types.SimpleNamespace(inputs=[Tensor(name, np.array(row, object)) for name, row in raw.items()])
