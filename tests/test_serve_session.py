"""Sessions: what they refuse, which runtime they take and say so, and that ONNX Runtime's groups change no result."""

import dataclasses
import threading

import numpy as np
import onnx
import pytest
import serve_kit

from configs.errors import UsageError, UserError
from serve import __main__ as answering
from serve import bench, engines, fitting, gpu, onnx_session, packed
from serve.bench import BenchConfig
from serve.config import ServeConfig, ServerConfig
from serve.gpu import Gpu
from serve.manifest import read
from serve.packed import Packed, cut
from serve.session import Session
from serve.tensorrt_session import TensorrtSession


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("engines")
    return {layout: serve_kit.write(place / layout, layout) for layout in ("packed", "padded")}


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("lengths", [(7,), (1,), (5, 32, 1, 17), (20,) * 8], ids=str)
def test_logits_are_the_models_in_the_order_of_the_tokens(folders, layout, lengths):
    batch = serve_kit.batch(*lengths)
    found = Session.open(folders[layout], "onnxruntime").run(batch)
    for got, want in zip(found, serve_kit.expected(batch), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_groups_of_any_budget_change_no_result(folders, layout, monkeypatch):
    batch = serve_kit.batch(9, 3, 30, 1, 1, 12, 30, 2)
    calls = []
    real = onnx_session.OnnxSession._call

    def counted(self, inputs):
        calls.append(next(iter(inputs.values())).size)
        return real(self, inputs)

    monkeypatch.setattr(onnx_session.OnnxSession, "_call", counted)
    manifest = read(folders[layout])
    for budget, groups in ((1, 8), (31, 5 if layout == "packed" else 4), (1000, 1)):
        calls.clear()
        found = onnx_session.OnnxSession(manifest, token_budget=budget).run(batch)
        assert len(calls) == groups
        for got, want in zip(found, serve_kit.expected(batch), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_cut_takes_every_row_once_and_keeps_to_its_limits(padded):
    random = np.random.default_rng(3)
    for _ in range(50):
        lengths = random.integers(1, 40, random.integers(0, 30))
        groups = cut(lengths, 60, 4, padded=padded)
        assert sorted(np.concatenate([[], *groups]).tolist()) == list(range(len(lengths)))
        for group in groups:
            computed = len(group) * lengths[group].max() if padded else lengths[group].sum()
            assert len(group) == 1 or (computed <= 60 and len(group) <= 4)
            assert padded or (np.diff(group) == 1).all()
    assert len(cut([20, 20, 20, 1], 60, 4)) == 2  # full to the token, not beyond
    assert [len(group) for group in cut([15] * 4, 60, 4)] == [4]


def array(*values, dtype=np.int32):
    return np.array(values, dtype)


@pytest.mark.parametrize(("changes", "seen"), [
    ({"token_ids": array(), "segment_ids": array(), "position_ids": array(), "cu_seqlens": array(0)}, "empty"),
    ({"token_ids": array(), "segment_ids": array(), "position_ids": array(), "cu_seqlens": array(0, 0)}, "empty"),
    ({"cu_seqlens": array(0, 5, 3, 12)}, r"cu_seqlens runs \[ 0  5  3 12\]; needed are growing"),
    ({"cu_seqlens": array(0, 5, 5, 12)}, "cu_seqlens"),
    ({"cu_seqlens": array(1, 12)}, "cu_seqlens"),
    ({"cu_seqlens": array(0, 11)}, "from 0 to 12"),
    ({"cu_seqlens": array(0, 2**31 - 1)}, "cu_seqlens"),
    ({"token_ids": array(*[serve_kit.ROWS] * 12)}, "token_ids has 60; this engine knows 0 to 59"),
    ({"token_ids": array(*[-1] * 12)}, "token_ids has -1"),
    ({"segment_ids": array(*[2] * 12)}, "segment_ids has 2; this engine knows 0 to 1"),
    ({"position_ids": array(*[64] * 12)}, "position_ids has 64"),
    ({"position_ids": array(*[0] * 11)}, "position_ids has 11 entries and token_ids 12"),
    ({"token_ids": np.zeros(12, np.int64)}, r"token_ids is int64 \[12\]; needed is an int32 array"),
    ({"token_ids": np.zeros((3, 4), np.int32)}, "one axis"),
    ({"token_ids": [0] * 12}, "token_ids is list"),
])  # fmt: skip
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_batch_that_does_not_fit_is_refused_before_anything_reads_memory_by_it(folders, layout, changes, seen):
    session = Session.open(folders[layout], "onnxruntime")
    batch = dataclasses.replace(serve_kit.batch(5, 7), **changes)
    with pytest.raises(UserError, match=seen):
        session.run(batch)


@pytest.mark.parametrize(("layout", "lengths", "seen"), [
    ("packed", (65,), "a sequence has 65 tokens, this engine takes up to 64"),
    ("padded", (33,), "up to 32"),
    ("packed", (1,) * 9, "9 sequences, the engine takes up to 8"),
    ("packed", (40, 40, 40, 41), "161 tokens, the engine takes up to 160"),
])  # fmt: skip
def test_a_batch_beyond_the_profile_is_refused(folders, layout, lengths, seen):
    with pytest.raises(UserError, match=seen):
        Session.open(folders[layout], "onnxruntime").run(serve_kit.batch(*lengths))


def test_a_padded_engine_refuses_positions_that_it_would_not_use(folders):
    batch = dataclasses.replace(serve_kit.batch(3, 3), position_ids=array(0, 1, 2, 3, 4, 5))
    with pytest.raises(UserError, match="count from 0"):
        Session.open(folders["padded"], "onnxruntime").run(batch)


def test_packed_of_counts_positions_from_0_in_every_sequence():
    batch = Packed.of([[7, 8, 9], [5]], [[0, 0, 1], [0]])
    assert batch.position_ids.tolist() == [0, 1, 2, 0]
    assert batch.cu_seqlens.tolist() == [0, 3, 4]
    assert batch.take(1, 2).token_ids.tolist() == [5]
    assert batch.take(1, 2).cu_seqlens.tolist() == [0, 1]
    with pytest.raises(UserError, match="differ in length"):
        Packed.of([[1, 2]], [[0]])


def test_without_a_gpu_auto_takes_onnx_runtime_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "find", lambda: "CUDA says cudaErrorNoDevice")
    session = Session.open(serve_kit.with_plan(tmp_path / "engine"))
    assert session.runtime == "onnxruntime"
    assert session.why.startswith("ONNX Runtime 1.")
    assert f"on the CPU, {gpu.cores()} threads, float32" in session.why
    assert "(not TensorRT: no NVIDIA GPU here (CUDA says cudaErrorNoDevice))" in session.why


def test_a_runtime_asked_for_by_name_is_had_or_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "find", lambda: "CUDA sees no device")
    folder = serve_kit.with_plan(tmp_path / "engine")
    with pytest.raises(UserError, match="no NVIDIA GPU here"):
        Session.open(folder, "tensorrt")
    assert Session.open(folder, "onnxruntime").why == Session.open(folder, "onnxruntime").why.split(" (")[0]
    with pytest.raises(UsageError, match="runtime 'openvino' is not known"):
        Session.open(folder, "openvino")
    with pytest.raises(UserError, match="has no CUDAExecutionProvider"):
        Session.open(folder, "onnxruntime", ["CUDAExecutionProvider"])


HERE = Gpu("NVIDIA H100", 90)


@pytest.mark.parametrize(("found", "changes", "seen"), [
    (HERE, None, r"has no model\.plan; export with --target"),
    (Gpu("NVIDIA A100", 80), {}, r"is for sm_90, this GPU is NVIDIA A100, sm_80; export with --arch 80"),
    (HERE, {"architectures": []}, "is for none, this GPU is"),
    (HERE, {"plugins": {"attention": "0" * 64}}, "plugins/attention/ has changed since the plan"),
    (HERE, {"plugins": {"rotary": "0" * 64}}, "uses a plugin 'rotary', unknown here"),
    (HERE, {}, r"built by tensorrt_rtx 9\.9\.9\.9, here is 1\."),
    (HERE, {"target": "tensorrt"}, "tensorrt is not installed|built by tensorrt 9"),
])  # fmt: skip
def test_a_plan_that_does_not_fit_is_an_error_by_name_and_a_reason_in_auto(tmp_path, monkeypatch, found, changes, seen):
    monkeypatch.setattr(gpu, "find", lambda: found)
    place = tmp_path / "engine"
    folder = serve_kit.write(place) if changes is None else serve_kit.with_plan(place, **changes)
    with pytest.raises(fitting.MisfitError, match=seen) as error:
        Session.open(folder, "tensorrt")
    session = Session.open(folder)
    assert session.runtime == "onnxruntime"
    assert f"not TensorRT: {error.value.reason}" in session.why
    assert "--runtime onnxruntime" not in session.why  # it is the runtime already


def test_a_damaged_plan_is_an_error_even_where_it_would_not_be_used(tmp_path):
    folder = serve_kit.with_plan(tmp_path / "engine")
    (folder / "model.plan").write_bytes(bytes(99))
    with pytest.raises(UserError, match="cut off"):
        Session.open(folder)


@pytest.mark.parametrize(("content", "seen"), [
    (b"", "cannot open"),
    (b"no protobuf at all", "cannot open"),
    (serve_kit.model("padded").SerializeToString(), "which is not the packed layout"),
    (serve_kit.model().SerializeToString()[:-40], "cannot open"),
], ids=["empty", "garbage", "other layout", "cut"])  # fmt: skip
def test_a_model_that_is_none_is_a_sentence_though_its_hash_is_right(tmp_path, content, seen):
    folder = serve_kit.write(tmp_path / "engine")
    (folder / "model.onnx").write_bytes(content)
    serve_kit.relist(folder, serve_kit.stated())
    with pytest.raises(UserError, match=seen):
        Session.open(folder)


def test_weights_beside_the_model_are_read_and_checked(tmp_path):
    folder = serve_kit.write(tmp_path / "engine")
    onnx.save_model(
        serve_kit.model(), str(folder / "model.onnx"),
        save_as_external_data=True, location="model.onnx.data", size_threshold=100,
    )  # fmt: skip
    serve_kit.relist(folder, serve_kit.stated())
    batch = serve_kit.batch(6)
    np.testing.assert_allclose(Session.open(folder).run(batch)[0], serve_kit.expected(batch)[0], atol=1e-5)
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"model\.onnx\.data has .* cut off"):
        Session.open(folder)


@pytest.mark.parametrize("inside", ["../outside.data", "absolute"])
def test_weights_outside_of_the_folder_are_not_read(tmp_path, inside):
    folder = serve_kit.write(tmp_path / "engine")
    path, outside = str(folder / "model.onnx"), tmp_path / "outside.data"
    onnx.save_model(serve_kit.model(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=100)
    (folder / "model.onnx.data").rename(outside)
    model = onnx.load(path, load_external_data=False)
    places = [entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"]
    places[0].value = str(outside) if inside == "absolute" else inside
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    serve_kit.relist(folder, serve_kit.stated())
    with pytest.raises(UserError, match="cannot open"):
        Session.open(folder)


def test_tickets_may_be_fetched_in_any_order_and_twice(folders):
    with Session.open(folders["packed"]) as session:
        batches = [serve_kit.batch(5, seed=seed) for seed in range(3)]
        tickets = [session.submit(batch) for batch in batches]
        for place in (2, 0, 1, 2):
            start, _ = session.result(tickets[place])
            np.testing.assert_allclose(start, serve_kit.expected(batches[place])[0], atol=1e-5)


def test_calls_at_a_time_overlap_and_each_gives_its_own_logits_or_error(folders, monkeypatch):
    batches, both = [serve_kit.batch(length, seed=length) for length in (9, 12)], threading.Barrier(2)
    with Session.open(folders["packed"], "onnxruntime", calls=2) as session:
        assert "2 calls of" in session.why
        real = session._compute
        monkeypatch.setattr(session, "_compute", lambda batch: (both.wait(10), real(batch))[1])
        tickets = [session.submit(batch) for batch in batches]  # the second begins before the first has ended
        for batch, ticket in zip(batches, tickets, strict=True):
            for got, wanted in zip(session.result(ticket), serve_kit.expected(batch), strict=True):
                np.testing.assert_allclose(got, wanted, atol=1e-5)
        monkeypatch.setattr(session, "_compute", lambda batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.result(session.submit(batches[0]))
        with pytest.raises(UserError):
            session.submit(serve_kit.batch(serve_kit.POSITIONS + 1))


def test_windows_of_features_are_packed_as_they_are_padded_for_training(folders):
    from serve.reader import Reader

    reader = Reader(folders["packed"])
    features = reader.features(_dataset())
    rows = np.array([2, 0, 1])
    batch = Packed.windows(features, rows)
    padded = features.assemble(rows, 24)
    for place, part in enumerate(np.split(np.arange(batch.tokens), batch.cu_seqlens[1:-1])):
        length = features.length[rows[place]]
        assert batch.token_ids[part].tolist() == padded["token_ids"][place, :length].tolist()
        assert batch.segment_ids[part].tolist() == padded["segment_ids"][place, :length].tolist()
        assert batch.position_ids[part].tolist() == list(range(length))
    packed.check(batch, reader.manifest)


def _dataset():
    from data.squad import Dataset, Example

    passage = serve_kit.PASSAGE + " " + "the notes . " * 8
    return Dataset([Example("0", "", passage, serve_kit.QUESTION, (), True)], "2.0")


@pytest.mark.parametrize("said", [{}, {"contexts": 1}, {"contexts": 3}])
def test_every_way_to_open_an_engine_has_the_contexts_that_were_asked_for(folders, monkeypatch, said):
    given = []

    def opened(manifest, fitted, **how):
        given.append(how["contexts"])
        raise UserError("far enough")

    monkeypatch.setattr(fitting, "fit", lambda manifest: None)
    monkeypatch.setattr(TensorrtSession, "opened", opened)
    how = {"engine": str(folders["packed"]), "runtime": "tensorrt"} | said
    ways = (
        lambda: answering.main(ServeConfig(question="a", context="b", **how)), lambda: bench.main(BenchConfig(**how)),
        lambda: engines.opener(ServerConfig(port=0, **how))("tiny", folders["packed"]),
    )  # fmt: skip
    for way in ways:
        with pytest.raises(UserError, match="far enough"):
            way()
    assert given == [said.get("contexts", 2)] * 3
