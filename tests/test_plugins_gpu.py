"""Plugins in engines on a GPU: what the test of a single operator does not show."""

import dataclasses

import numpy as np
import pytest

import plugins
from plugins import compile as compiler
from plugins import legs, one_node, peers, registration, tensorrt_flavour
from plugins.device import Device
from plugins.gelu import kernel as gelu_kernel
from plugins.gelu.cases import CASES
from plugins.kernels import KernelSet
from plugins.launch import Prepared

pytestmark = pytest.mark.gpu
ODD = next(case for case in CASES if case.name == "odd")


@pytest.fixture
def trt():
    return tensorrt_flavour.load("tensorrt_rtx")


def variant(approximate="none"):
    return gelu_kernel.variants({}, "float16", approximate=approximate)[1]  # odd


def open_gelu(trt, device, smallest=None, kernel_of=None):
    """An engine of gelu "none" for the case `odd`, with its own kernel or that of another variant under its name."""
    plan, _ = one_node.build(trt, "gelu", ODD, "float16", ["gelu"], axes=True, smallest=smallest)
    made = compiler.compile_kernel(variant(kernel_of or "none"), device.architecture)
    kernel = dataclasses.replace(made, name="gelu-none-odd-float16")
    return one_node.Engine(trt, plan, ["gelu"], KernelSet.of([kernel]))


def exact_gelu(approximate="none", shape=ODD.shape):
    case = dataclasses.replace(ODD, approximate=approximate, shape=shape, largest=2.0)
    given = legs.inputs("gelu", case, "float16")
    return given, legs.exact("gelu", case, given)


def test_two_engines_with_different_kernels_live_side_by_side(trt):
    given, erf = exact_gelu()
    tanh = exact_gelu("tanh")[1]
    with Device() as device:
        engines = open_gelu(trt, device), open_gelu(trt, device, kernel_of="tanh")
        for _ in range(2):
            for engine, meant, other in zip(engines, (erf, tanh), (tanh, erf), strict=True):
                for y in engine.run(device, given, ODD.shape, {"y": "float16"}):
                    assert np.abs(y - meant).mean() < np.abs(y - other).mean()


def test_one_context_runs_one_shape_after_another(trt):
    few = dataclasses.replace(ODD, shape=(1, 1, 257))
    with Device() as device:
        engine = open_gelu(trt, device, smallest=few)
        for shape in (ODD.shape, few.shape, (2, 5, 257), ODD.shape):
            given, exact = exact_gelu(shape=shape)
            for y in engine.run(device, given, shape, {"y": "float16"}):
                assert np.abs(y - exact).max() < 2e-3


def test_a_replayed_graph_runs_no_python_of_ours(trt, monkeypatch):
    calls = []
    original = Prepared.__call__
    monkeypatch.setattr(Prepared, "__call__", lambda *arguments: calls.append(1) or original(*arguments))
    given, exact = exact_gelu()
    with Device() as device:
        eager, replayed = open_gelu(trt, device).run(device, given, ODD.shape, {"y": "float16"})
    assert len(calls) == 2  # once eagerly, once while it was captured
    assert np.abs(eager - exact).max() < 2e-3
    assert np.array_equal(eager, replayed)


def test_a_further_context_works_while_the_plugins_are_registered(trt):
    given, exact = exact_gelu()
    with Device() as device:
        engine = open_gelu(trt, device)
        kernels = KernelSet.of([compiler.compile_kernel(variant(), device.architecture)])
        with registration.registered(trt, ["gelu"], kernels):  # a context has instances of its own
            engine.context = engine.engine.create_execution_context()
        for y in engine.run(device, given, ODD.shape, {"y": "float16"}):
            assert np.abs(y - exact).max() < 2e-3


def test_a_kernel_set_without_the_engines_kernel_is_an_error_and_no_fault(trt):
    given, _ = exact_gelu()
    with Device() as device:
        plan, _ = one_node.build(trt, "gelu", ODD, "float16", ["gelu"], axes=True)
        with pytest.raises(RuntimeError):
            one_node.Engine(trt, plan, ["gelu"], KernelSet.of([])).run(device, given, ODD.shape, {"y": "float16"})
        assert device.download(device.upload(np.ones(3, np.float32)), (3,), np.float32).sum() == 3


@pytest.mark.parametrize("op", sorted(plugins.OPS))
def test_the_peers_operator_in_torch_is_ours(op):
    torch = peers.load()
    assert torch, "the benches' peers need PyTorch"
    for case in legs.cases(op):
        given = legs.inputs(op, case, "float16")
        made = peers.call(torch, op, case, {name: peers.tensor(torch, array) for name, array in given.items()})
        # torch takes no ids that no table has, and rounds x + bias before it adds the residual.
        if made is None or not next(iter(given.values())).size or case.name in ("nonsense", "far from zero"):
            continue
        exact = legs.exact(op, case, given)
        y = made()
        error = np.linalg.norm(y.double().cpu().numpy().reshape(exact.shape) - exact)
        bound = 1e-2 if y.dtype == torch.float16 else 5e-2  # float8 has 3 bits of mantissa
        assert error <= bound * np.linalg.norm(exact) + 1e-6, case.name
