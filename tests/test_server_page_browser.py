"""The page as people use it: by keyboard alone, read aloud, in light and dark, asking nobody but its server."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

import pytest
import serve_kit
from browser_kit import Page, browser
from server_kit import ASK, TOKEN
from test_server_process import process

pytestmark = pytest.mark.browser
PASSAGE = "😀 it was by ada . in 1843 it was by Ada Lovelace . the notes"
FOCUSED = "document.activeElement.id || document.activeElement.textContent"
# The contrast of every text with what is behind it: WCAG 2's ratio, of which 4.5 is needed.
CONTRASTS = """(() => {
  const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(element).backgroundColor);
      if (a > 0.99) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll("main *")].filter((element) => element.offsetParent &&
    (element.value || [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())));
  return texts.map((element) => {
    const pair = [light(numbers(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
    return [element.id || element.tagName, (pair[0] + 0.05) / (pair[1] + 0.05)];
  });
})()"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with process(serve_kit.write(tmp_path_factory.mktemp("page") / "tiny")) as (_, port):
        yield f"http://127.0.0.1:{port}/"


TEXT = {"text": "😀 <i>ada</i> wrote by Lovelace ."}
HEADS: dict[str, tuple[dict, dict, str, tuple]] = {  # engine, what is asked, what is said, what a screen reader is told
    "classify": (
        {"task": "csv", "labels": ["<b>first</b>", "second"]}, {"text": "it was ada ada ada"}, "Answer: <b>first</b>",
        (("textbox", "Text"), ("textbox", "Second text"), ("rowheader", "second"), ("heading", "Classify a text")),
    ),
    "tag": (
        {"task": "conll", "labels": ["O", "B-NAME"]}, TEXT, "Lovelace (NAME)",
        (("textbox", "Text"), ("mark", ""), ("group", "In the text"), ("heading", "Tag a text")),
    ),
    "embed": (
        {"task": "embed"}, {"text": "it was ada", "second": "ada wrote"}, "Answer: similarity 0.",
        (("textbox", "Text"), ("textbox", "Second text"), ("meter", "Similarity"), ("heading", "Compare two texts")),
    ),
    "regress": ({"task": "csv/number"}, {"text": "it was ada"}, "Answer: 0.", (("heading", "Put a number to a text"),)),
}  # fmt: skip


@pytest.fixture(scope="module", params=HEADS)
def head(request, tmp_path_factory):
    """(address, what is asked, what is said, what a screen reader is told) of a server with an engine of the head."""
    engine, *rest = HEADS[request.param]
    with process(serve_kit.write(tmp_path_factory.mktemp("page") / request.param, **engine)) as (_, port):
        yield f"http://127.0.0.1:{port}/", *rest


def visit(url: str, tmp_path, what: Callable[[Page], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        async with browser(tmp_path / "profile") as page, asyncio.timeout(60):
            await page.open(url)
            await page.until("document.getElementById('fields').children.length + document.activeElement.id.length > 0")
            await what(page)
            own = (url.partition("?")[0], "data:")
            assert [address for address in page.asked if not address.startswith(own)] == []
            assert page.console == []

    asyncio.run(all_of_it())


def test_a_question_is_asked_and_a_runner_up_looked_at_by_keyboard_alone(url, tmp_path):
    async def ask(page: Page) -> None:
        order = []
        for text in (PASSAGE, ASK["question"], None):
            await page.key("Tab")
            order.append(await page.value(FOCUSED))
            if text:
                await page.fill(text)
        assert order == ["field-context", "field-question", "ask"]
        await page.key("Enter")
        await page.until("document.getElementById('said').textContent.startsWith('Answer:')")
        assert await page.value("document.querySelector('mark').textContent") == "Ada Lovelace"
        assert await page.value("document.getElementById('passage').textContent") == PASSAGE
        await page.key("Tab")
        assert await page.value(FOCUSED) == "passage"  # so that a long one can be scrolled
        await page.key("Tab")
        other = await page.value(FOCUSED)
        await page.key("Enter")
        assert await page.value("document.querySelector('mark').textContent") == other != "Ada Lovelace"
        assert await page.value("document.getElementById('said').textContent") == f"Highlighted: {other}"

    visit(url, tmp_path, ask)


def test_behind_a_secret_the_form_comes_with_it(tmp_path):
    (tmp_path / "token").write_text(TOKEN)

    async def ask(page: Page) -> None:
        assert await page.value(FOCUSED) == "secret"
        assert "needs a secret" in await page.value("document.getElementById('said').textContent")
        await page.fill(TOKEN)
        await page.key("Enter")
        await page.until("document.getElementById('said').textContent.startsWith('The form is ready')")
        assert await page.value("document.getElementById('invites').textContent") == "Classify a text"
        await page.key("Enter")
        await page.until("document.getElementById('said').textContent.startsWith('Answer:')")
        page.console.clear()  # a status of 401 is told there

    engine = serve_kit.write(tmp_path / "engine", **HEADS["classify"][0])
    with process(engine, "--token-file", tmp_path / "token") as (_, port):
        visit(f"http://127.0.0.1:{port}/", tmp_path, ask)


def test_control_and_enter_ask_from_within_the_passage(url, tmp_path):
    async def ask(page: Page) -> None:
        await page.key("Tab")
        await page.fill(PASSAGE)
        await page.key("Enter", ctrl=True)
        await page.until("document.getElementById('said').textContent.startsWith('Answer:')")

    visit(url, tmp_path, ask)


def test_a_screen_reader_is_told_what_everything_is(url, tmp_path):
    async def listen(page: Page) -> None:
        await page.until("document.getElementById('said').textContent.startsWith('Answer:')")
        names = await page.names()
        for told in (("textbox", "Passage"), ("textbox", "Question"), ("button", "Ask"), ("heading", "Ask a passage"),
                     ("heading", "Answer"), ("group", "In the passage"), ("table", "")):  # fmt: skip
            assert told in names
        assert ("mark", "") in names
        live = "[...document.querySelectorAll('[role=status][aria-live=polite]')].map((e) => e.textContent)"
        assert await page.value(live) == ["Answer: Ada Lovelace"]
        assert [told for told in names if told[0] in ("button", "textbox") and not told[1]] == []

    visit(f"{url}?{urlencode(ASK)}&ask", tmp_path, listen)


def test_engines_of_other_heads_are_asked_by_keyboard_and_read_aloud(head, tmp_path):
    """Their own fields, in their order, and what came back in their own way; nothing of it as markup."""
    address, asked, said, told = head

    async def ask(page: Page) -> None:
        for name, text in asked.items():
            await page.key("Tab")
            assert await page.value(FOCUSED) == f"field-{name}"
            await page.fill(text)
        await page.key("Enter", ctrl=True)
        await page.until("document.getElementById('said').textContent.startsWith('Answer:')")
        for name in ("said", "answer"):
            shown = await page.value(f"document.getElementById('{name}').textContent")
            assert said.removeprefix("Answer: ") in shown
        assert await page.value("document.querySelectorAll('main b, main i').length") == 0
        names = await page.names()
        assert [one for one in told if one not in names] == []
        assert [one for one in names if one[0] in ("button", "textbox") and not one[1]] == []
        if ("mark", "") in told:
            marked = "[...document.querySelectorAll('mark')].map((e) => e.textContent)"
            assert "LovelaceNAME" in await page.value(marked)
            whole = "document.getElementById('passage').textContent.replaceAll('NAME', '')"
            assert await page.value(whole) == asked["text"]

    visit(address, tmp_path, ask)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_other_heads_say_stands_out_too(head, tmp_path, scheme):
    address, asked, *_ = head

    async def look(page: Page) -> None:
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await page.until("document.getElementById('said').textContent.startsWith('Answer:')")
        assert [(name, round(ratio, 2)) for name, ratio in await page.value(CONTRASTS) if ratio < 4.5] == []

    visit(f"{address}?{urlencode(asked)}&ask", tmp_path, look)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("asked", [ASK, ASK | {"context": " "}], ids=["an answer", "an error"])
def test_every_text_stands_out_in_light_and_in_dark(url, tmp_path, scheme, asked):
    async def look(page: Page) -> None:
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        await page.call("Emulation.setEmulatedMedia", features=feature)
        await page.until("!['', 'Asking ...'].includes(document.getElementById('said').textContent)")
        dark = await page.value("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
        contrasts = await page.value(CONTRASTS)
        assert len(contrasts) > 6
        assert [(name, round(ratio, 2)) for name, ratio in contrasts if ratio < 4.5] == []
        page.console.clear()  # a status of 400 is told there

    visit(f"{url}?{urlencode(asked)}&ask", tmp_path, look)
