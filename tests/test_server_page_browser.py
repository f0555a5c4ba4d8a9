"""The page as people use it: by keyboard alone, read aloud, in light and dark, asking nobody but its server."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

import pytest
import serve_kit
from browser_kit import Page, browser
from server_kit import ASK
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


def visit(url: str, tmp_path, what: Callable[[Page], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        async with browser(tmp_path / "profile") as page, asyncio.timeout(60):
            await page.open(url)
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
        assert order == ["context", "question", "ask"]
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
