"""The repository for Triton: messages that are Triton's, encoders that are the graph, answers that are the Reader's."""

import asyncio
import json
import shutil
from typing import Any

import export_kit
import numpy as np
import onnx
import pytest
import serve_kit
from triton_kit import config, opened, request_of
from tritonclient.grpc import model_config_pb2 as messages

import heads
from configs.errors import UsageError, UserError
from export import checkpoint as checkpoints
from export import triton
from serve.answerer import Answerer
from serve.reader import Reader

LONG = " ".join(f"word{place}" for place in range(150))
ASKED = [
    ("word3 word9 ?", "word1 word2, word3 word4."), ("word5", LONG), ("Ä word7", f"  é word{8}\n{LONG[:300]}"),
    ("a", "b"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("triton")
    run = export_kit.run(root / "run", version="2.0", no_answer_threshold=0.4)
    export("--run", run, "--out", root / "bert.2", "--triton", root / "models", "--target", "none",
                      "--no-verify", "--max-batch", 4)  # fmt: skip
    return root / "bert.2", root / "models"


def export(*argv: object) -> dict:
    return export_kit.export(*map(str, argv))


@pytest.mark.parametrize(("suffix", "backend", "file"), [
    ("onnx", "onnxruntime", "model.onnx"), ("tensorrt", "tensorrt", "model.plan"),
])  # fmt: skip
def test_an_encoders_message_names_what_its_graph_takes_and_gives(folders, suffix, backend, file):
    stated = config(folders[1], f"bert.2_{suffix}")
    graph = onnx.load(folders[1] / f"bert.2_{suffix}" / "1" / "model.onnx").graph
    assert (stated.name, stated.backend, stated.default_model_filename) == (f"bert.2_{suffix}", backend, file)
    assert stated.max_batch_size == 4
    assert [item.name for item in stated.input] + list(stated.batch_input[0].target_name) == [
        value.name for value in graph.input
    ]  # fmt: skip
    assert [item.name for item in stated.output] == [value.name for value in graph.output]
    assert {value.type.tensor_type.elem_type for value in graph.input} == {onnx.TensorProto.INT32}
    assert {item.data_type for item in stated.input} == {messages.TYPE_INT32} == {stated.batch_input[0].data_type}
    assert {value.type.tensor_type.elem_type for value in graph.output} == {onnx.TensorProto.FLOAT}
    assert {item.data_type for item in stated.output} == {messages.TYPE_FP32}
    assert all(item.allow_ragged_batch for item in stated.input)
    kind = messages.BatchInput.BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO
    assert (stated.batch_input[0].kind, list(stated.batch_input[0].source_input)) == (kind, ["token_ids"])
    assert [list(item.target_name) for item in stated.batch_output] == [["start_logits"], ["end_logits"]]


def test_the_graph_for_tensorrt_has_no_op_of_ours_and_the_same_logits(folders):
    models = folders[1]
    graph = onnx.load(models / "bert.2_tensorrt" / "1" / "model.onnx")
    assert {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions
    assert any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in graph.graph.initializer)
    inputs = export_kit.packed_inputs(export_kit.batch(), tail=0)
    exact = export_kit.compute(models / "bert.2_onnx" / "1" / "model.onnx", inputs)
    for left, right in zip(export_kit.compute(graph, inputs), exact, strict=True):
        np.testing.assert_allclose(left, right, atol=0.1)


def test_of_an_engine_with_8_bit_products_triton_gets_16_bits(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "eight")
    stated = json.loads((tmp_path / "eight" / "engine.json").read_text())
    (tmp_path / "eight" / "engine.json").write_text(json.dumps(stated | {"precision": "float8"}))
    triton.write(tmp_path, tmp_path / "eight", "bert", checkpoints.read(folders[0].parent / "run"), "erf")
    graph = onnx.load(tmp_path / "bert_tensorrt" / "1" / "model.onnx").graph
    assert any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in graph.initializer)


@pytest.fixture
def front_end(folders, monkeypatch):
    """The repository's model.py, with its own copies of our packages, as Triton's Python backend would load it."""
    return opened(folders[1], "bert.2", monkeypatch)


def asked(question: bytes, context: bytes) -> Any:
    return request_of({"question": question, "context": context})


def test_the_front_end_answers_as_the_reader_and_its_windows_share_batches(folders, front_end):
    fake, model = front_end
    stated = config(folders[1], "bert.2")
    responses = asyncio.run(model.execute([asked(q.encode(), c.encode()) for q, c in ASKED]))
    with Reader(folders[0], "onnxruntime") as reader:
        answers = reader.answer_many(ASKED)
    assert len({answer.text == "" for answer in answers}) == 2  # one is "no answer", one is not
    for response, answer in zip(responses, answers, strict=True):
        assert [tensor.name for tensor in response.outputs] == [item.name for item in stated.output]
        found = {tensor.name: tensor.values[0] for tensor in response.outputs}
        assert (found["answer"].decode(), found["start"], found["end"]) == (answer.text, answer.start, answer.end)
        assert found["score"] == pytest.approx(answer.score, abs=1e-3)
    assert max(fake.batches) == 4


OTHERS: dict[str, tuple[list[str], list[dict]]] = {  # task -> labels, requests
    "csv": (["a", "b", "c"], [{"text": "word1 word2"}, {"text": LONG, "second": "word4"}]),
    "csv/number": ([], [{"text": "word1 word2"}]),
    "conll": (["O", "B-X", "I-X"], [{"text": "é word1, word2"}, {"words": ["word4", "word5"]}, {"text": LONG}]),
    "embed": ([], [{"text": "word1 word2"}, {"text": "word1", "second": "word4 word2"}]),
    "encode": ([], [{"text": "word1 word2"}]),
}  # fmt: skip


@pytest.mark.parametrize("task", OTHERS)
def test_a_repository_of_another_head_takes_its_fields_and_answers_as_its_engine(task, tmp_path, monkeypatch):
    labels, requests = OTHERS[task]
    run = export_kit.run(tmp_path / "run", task=task, labels=labels)
    export("--run", run, "--out", tmp_path / "head", "--triton", tmp_path / "models", "--target", "none",
                      "--no-verify", "--max-batch", 4)  # fmt: skip
    stated = config(tmp_path / "models", "head")
    with Answerer(tmp_path / "head", "onnxruntime") as answerer:
        head, direct = answerer.head, answerer.respond(requests)
    assert {item.name: item.optional for item in stated.input} == {
        name: not field.needed for name, field in head.fields.items()
    }  # fmt: skip
    fake, model = opened(tmp_path / "models", "head", monkeypatch)
    bad, *responses = asyncio.run(model.execute([request_of({"text": " "}), *map(request_of, requests)]))
    assert "text 0 is empty" in bad.error().message()
    for response, wanted in zip(responses, direct, strict=True):
        assert [tensor.name for tensor in response.outputs] == [item.name for item in stated.output]
        for tensor, kind in zip(response.outputs, head.gives.values(), strict=True):
            if tensor.name not in wanted:
                assert (kind[-1], tensor.values.shape) == ("?", (0,))
            elif kind in ("text", "json"):
                told = tensor.values[0].decode()
                assert kind == "text" or serve_kit.near(json.loads(told), wanted[tensor.name], 1e-3)
                assert kind == "json" or told == wanted[tensor.name]
            else:
                np.testing.assert_allclose(tensor.values, np.reshape(wanted[tensor.name], -1), atol=1e-3)
    assert (max(fake.batches) > 1) == (len(requests) > 1)


@pytest.mark.parametrize(("question", "context", "seen"), [
    (b" ", b"x", "question 0 is empty"), (b"x", b"", "context 0 is empty"), (b"x", b"\xff", "invalid start byte"),
    (b"x", b"y" * 100_000, "more than 100,000 characters"),
])  # fmt: skip
def test_a_bad_request_fails_alone_and_in_words(front_end, question, context, seen):
    bad, good = asyncio.run(front_end[1].execute([asked(question, context), asked(b"word3", b"word4")]))
    assert seen in bad.error().message()
    assert not good.has_error()


def test_what_makes_no_repository_is_refused_before_any_work(tmp_path):
    run = export_kit.run(tmp_path / "run")
    with pytest.raises(UserError, match="--layout packed"):
        export("--run", run, "--out", tmp_path / "e", "--triton", tmp_path / "m", "--layout", "padded")
    with pytest.raises(UsageError, match="--out as well"):
        export("--run", run, "--triton", tmp_path / "m")
    with pytest.raises(UserError, match="none for Triton"):
        export("--run", run, "--out", tmp_path / "e e", "--triton", tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_repository_is_replaced_and_no_other_folder(folders, tmp_path):
    assert triton.ours(folders[1])
    (tmp_path / "bert").mkdir()
    assert not triton.ours(tmp_path)


def test_a_graph_that_is_not_the_messages_is_noticed(folders):
    model = onnx.load(folders[1] / "bert.2_onnx" / "1" / "model.onnx")
    text = triton.encoder_config("x", "onnxruntime", 4, heads.default().outputs(1))
    triton.check(text, model)
    model.graph.output[0].name = "logits"
    with pytest.raises(UserError, match="logits"):
        triton.check(text, model)
