"""The page in a real browser: it asks, highlights the answer, and obeys the policy that forbids everything else."""

import itertools
import re
import subprocess
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest
import serve_kit
import server_kit
from server_kit import ASK, Served
from test_server_process import process

CHROMIUM = (
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--window-size=900,1250", "--virtual-time-budget=5000",
)  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = Served(server_kit.settings(serve_kit.write(tmp_path_factory.mktemp("page") / "tiny")))
    yield served
    served.close()


def test_the_page_has_no_inline_script_style_or_foreign_address(served):
    page = served.ask("GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    text = page.text
    assert re.findall(r"<script[^>]*>([^<]*)", text) == [""]
    assert not re.search(r"<style|\sstyle=|\son\w+=|https?://", text)
    for name in re.findall(r'(?:src|href)="(page\.\w+)"', text):
        assert served.ask("GET", f"/{name}").status_code == 200
    assert "innerHTML" not in served.ask("GET", "/page.js").text


def test_the_page_tells_a_screen_reader_how_it_went(served):
    assert re.search(r'role="status" aria-live="polite"', served.ask("GET", "/").text)


def test_runners_up_follow_the_answer_and_do_not_overlap(served):
    passage = "it was by ada lovelace . in 1843 it was ada . " * 3
    told = served.ask("POST", "/answer", json=ASK | {"context": passage, "runners_up": 4}).json()
    spans = [(told["start"], told["end"]), *((other["start"], other["end"]) for other in told["runners_up"])]
    assert len(spans) == 5
    ordered = sorted(spans)
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(ordered))
    scores = [told["score"], *(other["score"] for other in told["runners_up"])]
    assert scores == sorted(scores, reverse=True)
    assert all(passage[other["start"] : other["end"]] == other["text"] for other in told["runners_up"])
    assert "runners_up" not in served.ask("POST", "/answer", json=ASK).json()


def browse(url: str, *argv: str, folder: Path) -> str:
    done = subprocess.run(
        [*CHROMIUM, f"--user-data-dir={folder}", *argv, url],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "Content Security Policy" not in done.stderr
    return done.stdout


def seen(page: str, name: str) -> str:
    """The text of an element, without its markup."""
    found = re.search(rf'<(\w+)[^>]* id="{name}".*?</\1>|<(\w+) id="{name}".*?</\2>', page, re.DOTALL)
    assert found, page
    return " ".join(unescape(re.sub(r"<[^>]*>", "", found[0])).split())


@pytest.mark.browser
def test_a_browser_shows_the_answer_in_its_passage(tmp_path):
    with process(serve_kit.write(tmp_path / "tiny")) as (_, port):
        passage = "😀 <b>the notes</b> were written: it was by Ada Lovelace in 1843."
        url = f"http://127.0.0.1:{port}/?{urlencode(ASK | {'context': passage})}&ask"
        page = browse(url, "--dump-dom", folder=tmp_path / "profile")
        assert "<mark>Ada Lovelace</mark>" in page
        assert "&lt;b&gt;the notes" in page  # as text
        assert seen(page, "passage") == passage
        assert seen(page, "text") == "Ada Lovelace"
        assert seen(page, "said") == "Answer: Ada Lovelace"
        assert re.match(r"score 1\d\.\d\d, no answer -\d", seen(page, "score"))
        assert "model" in seen(page, "stages")
        assert seen(page, "others").count("score") >= 1


@pytest.mark.browser
def test_a_browser_says_what_the_server_refused(tmp_path):
    (tmp_path / "token").write_text(server_kit.TOKEN)
    with process(serve_kit.write(tmp_path / "tiny"), "--token-file", tmp_path / "token") as (_, port):
        url = f"http://127.0.0.1:{port}/?{urlencode(ASK)}&ask"
        page = browse(url, "--dump-dom", folder=tmp_path / "profile")
        assert "this server needs a secret" in seen(page, "said")
        assert re.search(r'<div id="secret-row">', page)
        assert re.search(r'<section id="result"[^>]* hidden', page)
