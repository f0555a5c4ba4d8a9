"""plugins/sanitize.py without a GPU: what is launched, with which limits, and what it says of a wrong result."""

import json
import sys

import numpy as np
import pytest

from plugins import legs, sanitize
from plugins.linear import matmul
from plugins.linear8 import plugin as linear8


@pytest.fixture
def launched(monkeypatch):
    """(operator, case, dtype, algorithms that cuBLASLt may offer, linear8's limit of few tokens) of each launch; the
    results are the references'."""

    class Gpu:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    seen = []

    def launch(device, op, case, given, dtype):
        seen.append((op, case.name, dtype, matmul.CANDIDATES, linear8.FEW_TOKENS))
        return legs.result([np.asarray(legs.exact(op, case, given), np.float64)])

    monkeypatch.setattr(sanitize, "Device", Gpu)
    monkeypatch.setattr(legs, "launched", launch)
    monkeypatch.setattr(legs, "assert_case_right", lambda *arguments, **allowance: None)
    return seen


def test_every_case_is_launched_with_one_algorithm_and_again_as_if_of_many_tokens(launched):
    before = matmul.CANDIDATES, linear8.FEW_TOKENS
    assert sanitize.launch_all(["gelu", "linear8_gelu8"]) == []
    assert {algorithms for _, _, _, algorithms, _ in launched} == {1}
    of = {op: [case for case in launched if case[0] == op] for op in ("gelu", "linear8_gelu8")}
    assert {case[1] for case in of["gelu"]} <= {case.name for case in legs.cases("gelu")}
    assert {case[4] for case in of["linear8_gelu8"]} == {before[1], 0}
    assert before == (matmul.CANDIDATES, linear8.FEW_TOKENS)


def test_a_wrong_result_is_told_and_is_the_exit_code(launched, monkeypatch, capsys):
    def wrong(op, case, result, given, dtype, what, **allowance):
        assert case.name != "odd", f"{what} is wrong"

    monkeypatch.setattr(legs, "assert_case_right", wrong)
    monkeypatch.setattr(sys, "argv", ["sanitize", "--ops", "gelu"])
    assert sanitize.main() == 1
    said = capsys.readouterr()
    assert "WRONG  gelu, case 'odd', float16" in said.out
    assert "error: gelu, case 'odd', float16 is wrong" in said.err
    assert json.loads(said.out.splitlines()[-1])["metrics"] == {"wrong": 2}
