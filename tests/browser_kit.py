"""A headless Chromium driven by its DevTools protocol over aiohttp: keys, text, scripts, its accessibility tree."""

import asyncio
import itertools
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = (
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0",
    "--window-size=900,1250", "about:blank",
)  # fmt: skip
CODES = {"Tab": 9, "Enter": 13}


class Page:
    """One tab. `asked` has every address that it asked for, `console` every line of its console."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers, self._session = socket, itertools.count(1), {}
        self._waiting: dict[int, asyncio.Future] = {}
        self.asked, self.console = list[str](), list[str]()

    async def read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if future := self._waiting.pop(told.get("id"), None):
                future.set_result(told)
            elif told.get("method") == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            elif told.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.console.append(json.dumps(told["params"]))

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol: what it returns."""
        number = next(self._numbers)
        self._waiting[number] = future = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **self._session})
        told = await asyncio.wait_for(future, 20)
        assert "error" not in told, told
        return told["result"]

    async def begin(self) -> None:
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        session = await self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": session["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime", "Accessibility"):
            await self.call(f"{domain}.enable")

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def value(self, script: str) -> Any:
        """What a JavaScript expression gives."""
        told = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true, for 10 seconds."""
        end = time.monotonic() + 10
        while not await self.value(script):
            assert time.monotonic() < end, (script, self.console)
            await asyncio.sleep(0.05)

    async def key(self, name: str, *, ctrl: bool = False) -> None:
        about = {"key": name, "code": name, "windowsVirtualKeyCode": CODES.get(name, 0), "modifiers": 2 * ctrl}
        text = {"text": "\r"} if name == "Enter" else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    async def fill(self, text: str) -> None:
        """Text in the place of what the focused field has."""
        await self.value("document.activeElement.select()")
        await self.call("Input.insertText", text=text)

    async def names(self) -> list[tuple[str, str]]:
        """(role, name) of all that a screen reader is told."""
        nodes = (await self.call("Accessibility.getFullAXTree"))["nodes"]
        shown = [node for node in nodes if not node["ignored"]]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in shown]


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """A page in a browser of its own, whose profile lies in the folder."""
    process = subprocess.Popen(
        [*CHROMIUM, f"--user-data-dir={folder}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    try:
        address = next(found[1] for line in process.stderr if (found := re.search(r"listening on (ws://\S+)", line)))
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=1 << 26) as socket:
            page = Page(socket)
            reading = asyncio.create_task(page.read())
            await page.begin()
            yield page
            reading.cancel()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
