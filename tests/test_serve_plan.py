"""Opening a plan, against a TensorRT made of plain objects: what is asked of it, and what becomes of each refusal."""

import gc
import re
import weakref
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import serve_kit

from configs.errors import UserError
from heads import default
from serve.buckets import packed_bucket
from serve.fitting import Fitted
from serve.gpu import Gpu
from serve.manifest import read
from serve.plan import Plan

PACKED = {name: "int32" for name in ("token_ids", "segment_ids", "position_ids", "cu_seqlens")}
LOGITS = {"start_logits": "float32", "end_logits": "float32"}


class Cache:
    def __init__(self):
        self.loaded = None

    def deserialize(self, blob):
        self.loaded = bytes(blob)

    def serialize(self):
        return b"kernels"


class Config:
    dynamic_shapes_kernel_specialization_strategy = cuda_graph_strategy = given = None

    def __init__(self):
        self.cache = Cache()

    def create_runtime_cache(self):
        return self.cache

    def set_runtime_cache(self, cache):
        self.given = cache


class Context:
    def __init__(self):
        self.shapes, self.addresses, self.refused = {}, {}, ""

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return self.refused != "shape"

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        self.stream = stream
        return self.refused != "run"


class Engine:
    def __init__(self, tensors, bounds):
        self.tensors, self.bounds, self.num_io_tensors = tensors, bounds, len(tensors)
        self.config, self.contexts, self.most = Config(), list[Context](), 9

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name):
        return self.tensors[name]

    def get_tensor_profile_shape(self, name, profile):
        return self.bounds[name]

    def create_runtime_config(self):
        return self.config

    def create_execution_context(self, config):
        assert config is self.config
        if len(self.contexts) == self.most:
            return None
        self.contexts.append(Context())
        return self.contexts[-1]


def fake(engine, validity="VALID", rtx=True, diagnostics=5):
    """A module like tensorrt_rtx, or with rtx=False like tensorrt, that opens `engine` whatever the plan is."""

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            if engine is None:
                self.logger.log(1, "Serialization assertion\n failed")
            return engine

    class Logger:
        Severity = SimpleNamespace(ERROR=1, WARNING=2)

    class RtxRuntime(Runtime):
        def get_engine_validity(self, plan):
            return validity, diagnostics

    trt: Any = ModuleType("trt")
    vars(trt).update(Runtime=RtxRuntime if rtx else Runtime, ILogger=Logger, int32="int32", float32="float32")
    trt.get_plugin_registry = lambda: None
    if rtx:
        trt.EngineInvalidityDiagnostics = SimpleNamespace(UNSUPPORTED_CC=2)
        trt.EngineValidity = SimpleNamespace(VALID="VALID", SUBOPTIMAL="SUBOPTIMAL", INVALID="INVALID")
        trt.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
        trt.CudaGraphStrategy = SimpleNamespace(DISABLED="disabled")
    return trt


def bounds(tokens=(1, 160), offsets=(2, 9)):
    return {name: [(low,), (low,), (high,)] for name, (low, high) in (("token_ids", tokens), ("cu_seqlens", offsets))}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """open(engine, ...) -> Plan, over the tiny engine folder."""
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))
    manifest = read(serve_kit.with_plan(tmp_path / "engine"))
    return lambda engine, **how: Plan(manifest, Fitted(fake(engine, **how), Gpu("made up", 90), None), 2)  # type: ignore


def test_tensorrt_rtx_is_told_to_specialise_at_once_and_to_leave_graphs_to_us(opened):
    engine = Engine(PACKED | LOGITS, bounds())
    opened(engine)
    assert engine.config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert engine.config.cuda_graph_strategy == "disabled"
    assert engine.config.given is engine.config.cache


def test_kernels_made_at_run_time_are_kept_for_the_next_process(opened):
    first, second = (Engine(PACKED | LOGITS, bounds()) for _ in range(2))
    plan = opened(first)
    assert first.config.cache.loaded is None
    plan.save_cache()
    opened(second)
    assert second.config.cache.loaded == b"kernels"


def test_full_tensorrt_is_asked_for_nothing_that_it_lacks(opened):
    engine = Engine(PACKED | LOGITS, bounds())
    opened(engine, rtx=False).save_cache()
    assert vars(engine.config).keys() == {"cache"}


@pytest.mark.parametrize(("engine", "how", "seen"), [
    (None, {}, "cannot read .*: Serialization assertion failed; export the engine again"),
    (Engine(PACKED | LOGITS, bounds()), {"validity": "INVALID"}, r"refuses .* \(diagnostics 0x5"),
    (Engine(PACKED | {"encoded": "float32"}, bounds()), {}, "which is not the packed layout"),
    (Engine(PACKED | LOGITS | {"cu_seqlens": "int64"}, bounds()), {}, "which is not the packed layout"),
    (Engine(PACKED | LOGITS, bounds(tokens=(1, 159))), {}, r"takes token_ids from \(1,\) to \(159,\)"),
    (Engine(PACKED | LOGITS, bounds(tokens=(2, 160))), {}, "takes token_ids"),
    (Engine(PACKED | LOGITS, bounds(offsets=(2, 8))), {}, "takes cu_seqlens"),
])  # fmt: skip
def test_a_plan_that_is_not_the_manifests_is_a_sentence(opened, engine, how, seen):
    with pytest.raises(UserError, match=seen):
        opened(engine, **how)


def test_memory_that_is_enough_for_one_context_alone_is_told_with_what_would_need_less(opened):
    engine = Engine(PACKED | LOGITS, bounds())
    assert not opened(engine).note
    engine = Engine(PACKED | LOGITS, bounds())
    engine.most = 1
    plan = opened(engine)
    assert len(plan.contexts) == 1
    assert re.match(r"TensorRT made 1 of 2 execution contexts: .*smaller --max-tokens", plan.note)
    plan.contexts[0].execute(77)
    engine.most = 1  # and it has that one already
    with pytest.raises(RuntimeError, match=r"made 0 of 2 execution contexts: .*smaller --max-tokens"):
        opened(engine)


def test_the_last_user_of_a_plan_takes_its_contexts_along_though_nobody_looks_for_rings(opened):
    engine = Engine(PACKED | LOGITS, bounds())
    gc.disable()
    try:
        plan = opened(engine)
        alive = [weakref.ref(each) for each in (plan, *plan.contexts)]
        del plan
        assert [each() for each in alive] == [None] * 3
    finally:
        gc.enable()


def test_a_plan_that_is_merely_not_the_fastest_is_used(opened):
    opened(Engine(PACKED | LOGITS, bounds()), validity="SUBOPTIMAL")


def test_a_plan_of_which_only_the_gpu_is_doubted_is_opened_since_engine_json_names_that_gpu(opened):
    opened(Engine(PACKED | LOGITS, bounds()), validity="INVALID", diagnostics=2)


def test_shapes_and_addresses_are_those_of_the_bucket(opened):
    engine = Engine(PACKED | LOGITS, bounds())
    plan = opened(engine)
    plan.contexts[1].prepare(packed_bucket(128, 4, default().outputs(2)), 10_000, 20_000)
    plan.contexts[1].execute(77)
    other, context = engine.contexts
    assert other.shapes == other.addresses == {}
    assert context.shapes == {
        "token_ids": (128,), "segment_ids": (128,), "position_ids": (128,), "cu_seqlens": (5,)
    }  # fmt: skip
    assert context.addresses == {
        "token_ids": 10_000, "segment_ids": 10_512, "position_ids": 11_024, "cu_seqlens": 11_536,
        "start_logits": 20_000, "end_logits": 20_512,
    }  # fmt: skip
    assert context.stream == 77


@pytest.mark.parametrize(("refused", "seen"), [("shape", "refused the shape"), ("run", "refused to run")])
def test_what_tensorrt_refuses_at_run_time_is_an_error_with_its_words(opened, refused, seen):
    engine = Engine(PACKED | LOGITS, bounds())
    plan = opened(engine)
    engine.contexts[0].refused = refused

    def run():
        plan.contexts[0].prepare(packed_bucket(64, 1, default().outputs(2)), 0, 0)
        plan.contexts[0].execute(0)

    with pytest.raises(RuntimeError, match=f"{seen}.*it gave no reason"):
        run()
