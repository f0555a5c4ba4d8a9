"""The Open Inference Protocol's tensors, as JSON and as bytes: what comes out, and the sentence for what is wrong."""

import json

import numpy as np
import pytest
import serve_kit

from configs.errors import UserError
from heads import find
from serve import protocol

BATCH = serve_kit.batch(5, 7)
OUTPUTS = find("squad").outputs(2)


def tensor(name: str, **changes) -> dict:
    values = getattr(BATCH, name)
    return {"name": name, "datatype": "INT32", "shape": [len(values)], "data": values.tolist()} | changes


def request(**changes) -> dict:
    return {"inputs": [tensor(name) for name in protocol.INPUTS]} | changes


def parsed(value: dict) -> tuple:
    return protocol.parse(json.dumps(value).encode(), None, OUTPUTS)


def binary(head: dict | None = None, more: bytes = b"", less: int = 0, **changes) -> tuple[bytes, str]:
    inputs = []
    for name in protocol.INPUTS:
        size = {"binary_data_size": 4 * len(getattr(BATCH, name))}
        inputs.append({key: value for key, value in tensor(name).items() if key != "data"} | {"parameters": size})
    inputs[0] |= changes
    text = json.dumps({"inputs": inputs} | (head or {})).encode()
    data = b"".join(getattr(BATCH, name).astype("<i4").tobytes() for name in protocol.INPUTS)
    return text + data[: len(data) - less] + more, str(len(text))


def same(batch) -> bool:
    return all(np.array_equal(getattr(batch, name), getattr(BATCH, name)) for name in protocol.INPUTS)


def test_json_and_bytes_give_the_same_batch():
    as_json, as_bytes = parsed(request())[1], protocol.parse(*binary(), OUTPUTS)[1]
    assert same(as_json)
    assert same(as_bytes)
    assert all(getattr(as_bytes, name).dtype == np.int32 for name in protocol.INPUTS)
    assert as_bytes.token_ids.flags.writeable  # a copy: the body may go


def inputs(place: int, **changes) -> dict:
    value = request()
    value["inputs"][place] |= changes
    return value


@pytest.mark.parametrize(("value", "seen"), [
    (request(inputs=request()["inputs"][:3]), "the input cu_seqlens is missing"),
    (request(inputs=[tensor("token_ids")] * 2), "'token_ids' stands there twice"),
    (inputs(0, name="ids"), "'ids' is not known; needed are token_ids"),
    (inputs(0, datatype="INT64"), "datatype 'INT64'; needed is INT32"),
    (inputs(0, shape=[3, 4]), r"shape \[3, 4\]; needed is one axis"),
    (inputs(0, shape=[-1]), "needed is one axis"),
    (inputs(0, shape=[13]), "has 12 numbers and the shape"),
    (inputs(0, shape=[12.0]), "inputs.0.shape.0: Input should be a valid integer"),
    (inputs(0, data=[1.5] * 12), "must be whole numbers of 32 bits"),
    (inputs(0, data=[True] * 12), "must be whole numbers of 32 bits"),
    (inputs(0, data=[2**31] * 12), "must be whole numbers of 32 bits"),
    (inputs(0, data=[[1] * 12]), "must be whole numbers of 32 bits"),
    (inputs(0, data=None), "neither data nor binary_data_size"),
    (inputs(0, parameters={"shared_memory_region": "x"}), "in shared memory"),
    (inputs(0, parameters={"binary_data_size": 48}), "0 bytes are left"),
    (request(outputs=[{"name": "logits"}]), "output 'logits' is not known"),
    ({"inputs": {}}, "inputs: Input should be a valid array"),
    ({}, "inputs: Field required"),
])  # fmt: skip
def test_what_is_wrong_with_a_request_is_named(value, seen):
    with pytest.raises(UserError, match=seen):
        parsed(value)


@pytest.mark.parametrize(("body", "seen"), [
    (b"", "EOF"), (b"{", "EOF"), (b"\xff{}", "Invalid JSON|utf-8"), (b'{"inputs": ["\xff"]}', "unicode|utf-8|UTF-8"),
    (b"[" * 100_000, "recursion"), (b'{"inputs": NaN}', "inputs"),
], ids=["empty", "cut", "not UTF-8", "not UTF-8 inside", "deep", "NaN"])  # fmt: skip
def test_a_body_that_is_no_json_is_refused_in_words(body, seen):
    with pytest.raises(UserError, match=f"(?i){seen}"):
        protocol.parse(body, None, OUTPUTS)


@pytest.mark.parametrize(("given", "seen"), [
    (binary(more=b"1234"), "4 bytes follow the last tensor"),
    (binary(less=4), "bytes are left in the body"),
    (binary(parameters={"binary_data_size": 44}), "binary_data_size is 44"),
    (binary(parameters={"binary_data_size": -4}), "binary_data_size is -4"),
    (binary(parameters={"binary_data_size": "48"}), "binary_data_size is 48"),
    (binary(data=[1] * 12), "both data and binary_data_size"),
    ((binary()[0], "99999"), "it was cut off"),
    ((binary()[0], "-1"), "needed are digits"),
    ((binary()[0], "٣"), "needed are digits"),
])  # fmt: skip
def test_bytes_that_do_not_fit_their_header_are_refused(given, seen):
    with pytest.raises(UserError, match=seen):
        protocol.parse(given[0], given[1], OUTPUTS)


def logits() -> tuple[np.ndarray, np.ndarray]:
    return np.arange(3, dtype=np.float32), np.array([1.5, np.nan, np.inf], np.float32)


def test_outputs_come_in_the_form_asked_for():
    first = [{"name": "end_logits"}, {"name": "start_logits", "parameters": {"binary_data": True}}]
    asked, _ = parsed(request(id="seven", outputs=first))
    body, size = protocol.answer(asked, "tiny", OUTPUTS, logits())
    assert size is not None
    told = json.loads(body[:size])
    assert (told["id"], told["model_name"]) == ("seven", "tiny")
    assert [output["name"] for output in told["outputs"]] == ["end_logits", "start_logits"]
    assert told["outputs"][0]["data"][:2] == [1.5, 0.0]
    assert np.frombuffer(body[size:], "<f4").tolist() == [0.0, 1.0, 2.0]
    every, _ = parsed(request(parameters={"binary_data_output": True}))
    body, size = protocol.answer(every, "tiny", OUTPUTS, logits())
    assert size is not None
    assert len(body) - size == 24
    assert protocol.answer(parsed(request())[0], "tiny", OUTPUTS, logits())[1] is None


@pytest.mark.parametrize(("given", "deadline", "priority"), [
    ({}, 900.0, 0), ({"timeout": 50_000}, 50.0, 0), ({"timeout": 10**9}, 900.0, 0), ({"priority": 1}, 900.0, -9),
    ({"priority": 12}, 900.0, 2), ({"priority": 5000}, 900.0, 9),
])  # fmt: skip
def test_the_protocols_timeout_and_priority_are_the_batchers(given, deadline, priority):
    asked, _ = parsed(request(parameters=given))
    assert (asked.deadline_ms(900.0), asked.priority()) == (deadline, priority)


@pytest.mark.parametrize("given", [{"timeout": -1}, {"timeout": "1"}, {"timeout": 1.5}, {"timeout": True}])
def test_a_timeout_that_is_none_is_refused(given):
    with pytest.raises(UserError, match="timeout"):
        parsed(request(parameters=given))[0].deadline_ms(900.0)
