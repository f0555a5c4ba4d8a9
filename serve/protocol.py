"""The Open Inference Protocol, version 2, over HTTP: tensors as JSON, or as bytes after the JSON, and back.

Every engine, packed or padded, takes the packed inputs of `serve/packed.py` and gives the outputs of its head, with a
row for every token or for every sequence:

    token_ids, segment_ids, position_ids INT32 [T], cu_seqlens INT32 [B + 1]  ->  start_logits, end_logits FP32 [T]
                                                                              ->  logits FP32 [B, classes], ...

The bytes are Triton's "binary tensor data extension", which `tritonclient.http` uses unless it is told otherwise: the
body begins with so many bytes of JSON as the header Inference-Header-Content-Length says; the tensors whose parameters
name a `binary_data_size` follow, little-endian, in the order in which the JSON names them.
Source: https://github.com/kserve/open-inference-protocol, and Triton's extension_binary_data.md.
"""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.errors import UserError
from heads import Output
from serve.packed import ROWS, Packed
from serve.session import Session

INPUTS = (*ROWS, "cu_seqlens")
HEADER = "inference-header-content-length"
VERSION = "1"
Model = TypeVar("Model", bound=BaseModel)


class Tensor(BaseModel):
    """One input."""

    model_config = ConfigDict(strict=True)
    name: str = Field(max_length=100)
    shape: list[int] = Field(max_length=8)
    datatype: str = Field(max_length=10)
    parameters: dict[str, Any] = {}
    data: list[Any] | None = Field(None, description="numbers, nested as the shape says or in one row")


class Wanted(BaseModel):
    """One output that is wanted."""

    model_config = ConfigDict(strict=True)
    name: str = Field(max_length=100)
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """The JSON of a request."""

    model_config = ConfigDict(strict=True)
    id: str | None = Field(None, max_length=1000)
    inputs: list[Tensor] = Field(max_length=16)
    outputs: list[Wanted] = Field([], max_length=16)
    parameters: dict[str, Any] = {}

    def deadline_ms(self, default: float) -> float:
        """The parameter `timeout`, which is in microseconds; 0 is none of its own. Raises: UserError."""
        timeout = self.parameters.get("timeout", 0)
        if type(timeout) is not int or not 0 <= timeout <= 2**63:
            raise UserError("the parameter 'timeout' takes a whole number of microseconds")
        return min(timeout / 1000, default) if timeout else default

    def priority(self) -> int:
        """The parameter `priority`, 1 the most urgent, 10 as none, as the batcher's -9 to 9. Raises: UserError."""
        priority = self.parameters.get("priority", 0)
        if type(priority) is not int or not 0 <= priority < 2**63:
            raise UserError("the parameter 'priority' takes a whole number from 0 on")
        return min(priority - 10, 9) if priority else 0


def metadata(name: str, session: Session) -> dict[str, Any]:
    """What `GET /v2/models/NAME` says of an engine open in a session."""
    inputs = [{"name": tensor, "datatype": "INT32", "shape": [-1]} for tensor in INPUTS]
    outputs = [
        {"name": one.name, "datatype": "FP32", "shape": [-1] if one.width is None else [-1, one.width]}
        for one in session.manifest.outputs
    ]
    about = {"name": name, "versions": [VERSION], "platform": f"retort_{session.runtime}"}
    return about | {"inputs": inputs, "outputs": outputs}


def parse(body: bytes, header_length: str | None, outputs: Sequence[Output]) -> tuple[InferRequest, Packed]:
    """A request's JSON and its tensors, for an engine with these outputs.

    `body` is whole, and its size was bounded before; nothing here makes more than a few times as much of it. What the
    numbers say is not looked at: `serve.packed.check` does that. Raises: UserError for anything that does not fit.
    """
    size = len(body)
    if header_length is not None:
        if not header_length.isascii() or not header_length.isdecimal() or len(header_length) > 12:
            raise UserError(f"the header Inference-Header-Content-Length is {header_length[:40]!r}; needed are digits")
        size = int(header_length)
        if size > len(body):
            raise UserError(f"the body has {len(body)} bytes, its JSON alone is said to have {size}; it was cut off")
    request = checked(InferRequest, body[:size])
    found: dict[str, np.ndarray] = {}
    for tensor in request.inputs:
        if tensor.name in found or tensor.name not in INPUTS:
            again = "stands there twice" if tensor.name in found else "is not known"
            raise UserError(f"the input {tensor.name!r} {again}; needed are {', '.join(INPUTS)}, each once")
        array, size = _array(tensor, body, size)
        found[tensor.name] = array
    if missing := [name for name in INPUTS if name not in found]:
        raise UserError(f"the input {missing[0]} is missing; needed are {', '.join(INPUTS)}")
    if size != len(body):
        raise UserError(f"{len(body) - size} bytes follow the last tensor; each has its binary_data_size in the JSON")
    there = [output.name for output in outputs]
    for wanted in request.outputs:
        if wanted.name not in there:
            raise UserError(f"the output {wanted.name!r} is not known; there are {', '.join(there)}")
    return request, Packed(**found)


def answer(
    request: InferRequest, model: str, outputs: Sequence[Output], arrays: Sequence[np.ndarray]
) -> tuple[bytes, int | None]:
    """(body, length of its JSON, or None where all of it is JSON): the outputs asked for, in the form asked for."""
    every = bool(request.parameters.get("binary_data_output", False))
    found = {output.name: array for output, array in zip(outputs, arrays, strict=True)}
    chosen = request.outputs or [Wanted(name=name) for name in found]
    rows, tail = list[dict[str, Any]](), list[bytes]()
    for output in chosen:
        values = np.ascontiguousarray(found[output.name], np.dtype("<f4"))
        told: dict[str, Any] = {"name": output.name, "datatype": "FP32", "shape": list(values.shape)}
        if output.parameters.get("binary_data", every):
            tail.append(values.tobytes())
            told["parameters"] = {"binary_data_size": len(tail[-1])}
        else:  # JSON has no infinity and no NaN
            told["data"] = np.nan_to_num(values).reshape(-1).tolist()
        rows.append(told)
    said = {"model_name": model, "model_version": VERSION, "outputs": rows}
    if request.id is not None:
        said["id"] = request.id
    head = json.dumps(said, allow_nan=False).encode()
    return head + b"".join(tail), len(head) if tail else None


def checked(kind: type[Model], body: bytes) -> Model:
    """The body as what it should be. Raises: UserError with the first thing that is wrong, without the input."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200]
        raise UserError(f"{place}: {first['msg'][:300]}" if place else first["msg"][:300]) from error


def _array(tensor: Tensor, body: bytes, begin: int) -> tuple[np.ndarray, int]:
    """(int32 [n], where the bytes of the next tensor begin)."""
    where = f"the input {tensor.name}"
    if tensor.datatype != "INT32":
        raise UserError(f"{where} has the datatype {tensor.datatype!r}; needed is INT32")
    if len(tensor.shape) != 1 or tensor.shape[0] < 0:
        raise UserError(f"{where} has the shape {tensor.shape}; needed is one axis")
    if "shared_memory_region" in tensor.parameters:
        raise UserError(f"{where} is in shared memory, which this server does not read; send the numbers")
    size = tensor.parameters.get("binary_data_size")
    if size is not None:
        if type(size) is not int or size != 4 * tensor.shape[0] or begin + size > len(body):
            raise UserError(f"{where}: binary_data_size is {str(size)[:40]}, the shape is {tensor.shape} of 4 bytes "
                            f"each, and {len(body) - begin} bytes are left in the body")  # fmt: skip
        if tensor.data is not None:
            raise UserError(f"{where} has both data and binary_data_size; send one")
        return np.frombuffer(body, "<i4", tensor.shape[0], begin).astype(np.int32), begin + size
    values = tensor.data
    if values is None:
        raise UserError(f"{where} has neither data nor binary_data_size")
    if any(type(value) is not int or not -(2**31) <= value < 2**31 for value in values):
        raise UserError(f"{where}: its data must be whole numbers of 32 bits in one row")
    if len(values) != tensor.shape[0]:
        raise UserError(f"{where} has {len(values)} numbers and the shape {tensor.shape}")
    return np.array(values, np.int32), begin


def takes(kind: type[BaseModel], required: bool = True) -> dict[str, Any]:
    """What OpenAPI says of a route that reads its body itself."""
    schema = kind.model_json_schema()
    content = {"application/json": {"schema": _inlined(schema, schema)}}
    return {"requestBody": {"required": required, "content": content}}


def _inlined(part: Any, whole: dict[str, Any]) -> Any:
    """A JSON schema with what its $refs point at in their place: OpenAPI looks for them elsewhere."""
    if isinstance(part, list):
        return [_inlined(item, whole) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(whole["$defs"][part["$ref"].rpartition("/")[2]], whole)
    return {key: _inlined(value, whole) for key, value in part.items() if key != "$defs"}
