"""A profile adds up what each operator took, and knows what it could not do without."""

import math
from types import SimpleNamespace

import pytest

from plugins import device, peaks, plugin, profile, registration, tensorrt_flavour
from plugins.profile import moved, operations, recording
from serve import bench_profile

LINEAR = {"x": (128, 64), "weight": (64, 192), "bias": (192,), "y": (128, 192)}


class Clock:
    """cuda-bindings' driver as far as events go; `now` is in milliseconds."""

    def __init__(self):
        self.now, self.live = 0.0, 0

    def cuEventCreate(self, _):  # noqa: N802
        self.live += 1
        return 0, SimpleNamespace()

    def cuEventRecord(self, event, stream):  # noqa: N802
        event.at = self.now
        return (0,)

    def cuEventSynchronize(self, event):  # noqa: N802
        return (0,)

    def cuEventElapsedTime(self, begin, end):  # noqa: N802
        return 0, end.at - begin.at

    def cuEventDestroy(self, event):  # noqa: N802
        self.live -= 1
        return (0,)


def test_calls_of_the_same_shapes_are_one_row_and_the_slowest_stands_first(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(profile, "driver", lambda: clock)

    def takes(milliseconds):
        clock.now += milliseconds

    gelu = {"x": (128, 192), "y": (128, 192)}
    with recording() as record:
        assert profile.current() is record
        for slower in (1, 2, 30):  # three runs; the median counts
            record.runs.append([])
            for _ in range(2):
                record.around("linear", LINEAR, "float16", 7, lambda slower=slower: takes(0.01 * slower))
            record.around("gelu", gelu, "float16", 7, lambda: takes(0.5))
    assert profile.current() is None
    first, second = record.rows([128])
    assert (first.op, first.calls, first.microseconds) == ("gelu", 1, pytest.approx(500))
    assert (second.op, second.calls, second.microseconds) == ("linear", 2, pytest.approx(40))
    assert second.operations == 2 * 2 * 128 * 64 * 192
    assert second.floor(1e12, 1e9) == pytest.approx(1e6 * second.operations / 1e9)
    assert first.floor(1e9, 1e15) == pytest.approx(1e6 * 2 * 2 * 128 * 192 / 1e9)
    assert clock.live == 0


def test_what_cannot_be_timed_or_has_no_floor_costs_its_own_cell_alone(monkeypatch, capsys):
    class Failing(Clock):
        def cuEventElapsedTime(self, begin, end):  # noqa: N802
            return (1,) if end.at - begin.at == 5.0 else super().cuEventElapsedTime(begin, end)

        def cuEventRecord(self, event, stream):  # noqa: N802
            return (2,) if stream == 8 else super().cuEventRecord(event, stream)

    clock, called = Failing(), []
    monkeypatch.setattr(profile, "driver", lambda: clock)

    def takes(milliseconds):
        called.append(milliseconds)
        clock.now += milliseconds

    def engine():
        record.around("linear", LINEAR, "float16", 7, lambda: takes(2.0))
        record.around("gelu", {"x": (8, 16), "y": (8, 16)}, "float16", 7, lambda: takes(5.0))
        record.around("skip_layer_norm", {"x": (8, 16), "y": (8, 16)}, "float16", 8, lambda: takes(1.0))
        record.around("unheard_of", {"x": (8, 16), "y": (8, 16)}, "float16", 7, lambda: takes(0.5))
        takes(3.0)

    with recording() as record:
        for _ in range(2):
            record.around_run(7, engine)
        record.forget(1)
    rows = record.rows([128])
    assert called == 2 * [2.0, 5.0, 1.0, 0.5, 3.0]
    assert [row.op for row in rows] == ["linear", "unheard_of", "gelu", "skip_layer_norm", profile.REST]
    found = bench_profile.table("1 x 8", rows, (1e12, float("nan")))
    assert found == {"linear": 2000.0, "unheard_of": 500.0, profile.REST: 9000.0}
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("1 x 8: 11,500 us")
    assert sum("-" in line.split("[")[0] for line in lines[3:]) == 5


def test_the_floors_are_those_of_measured_peaks_and_one_that_fails_is_not_known(monkeypatch, capsys):
    class Gpu:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def fails(on, dtype):
        assert (type(on), dtype) == (Gpu, "float16")
        raise RuntimeError("no such product")

    monkeypatch.setattr(device, "Device", Gpu)
    monkeypatch.setattr(peaks, "bytes_per_s", lambda on: 4e12)
    monkeypatch.setattr(peaks, "operations_per_s", fails)
    known, unknown = bench_profile.measured_peaks()
    assert known == 4e12
    assert math.isnan(unknown)
    assert "not known: no such product" in capsys.readouterr().out


def test_bytes_are_those_that_must_be_moved_and_operations_those_of_the_products():
    assert moved("linear", LINEAR, "float16") == 2 * (128 * 64 + 64 * 192 + 192 + 128 * 192)
    tables = {"token_ids": (9,), "token_table": (30000, 64), "gamma": (64,), "y": (9, 64)}
    assert moved("embed_layer_norm", tables, "float16") == 2 * (9 + 9 * 64 + 64 + 9 * 64)
    assert operations("attention", {"qkv": (12, 192), "where": (3,), "y": (12, 64)}, [8, 4]) == 4 * 64 * (64 + 16)
    assert operations("skip_layer_norm", {"x": (12, 64), "y": (12, 64)}, [12]) == 0


def test_a_plugin_with_two_outputs_is_timed_like_any_other(monkeypatch):
    monkeypatch.setattr(profile, "driver", Clock)
    kind = plugin("skip_layer_norm8")
    names = [*kind.inputs, "y", "q"]
    shapes = {name: (8, 16) if name in ("x", "residual", "y", "q") else (16,) for name in names}
    bound = registration._bound_class(tensorrt_flavour.load("tensorrt_rtx"), kind)(kind())
    called = []
    bound.shapes = ("float16", *shapes.values())
    bound.ready[bound.shapes] = lambda *given: called.append(given)
    with recording() as record:
        record.runs.append([])
        bound.enqueue(None, None, [1, 2, 3, 4, 5], [6, 7], 512, 9)
    assert called == [(9, [1, 2, 3, 4, 5, 6, 7], 512)]
    ((op, seen, dtype, _),) = record.runs[0]
    assert (op, seen, dtype) == ("skip_layer_norm8", shapes, "float16")
    assert moved(op, seen, dtype) == 8 * 16 * (2 + 2 + 2 + 1) + 16 * 3 * 2


def test_an_exception_in_a_plugin_is_logged_with_its_name_and_goes_on(caplog):
    with pytest.raises(ValueError), registration._logged("gelu"):
        raise ValueError("no such shape")
    assert "plugin gelu: ValueError: no such shape" in caplog.text
