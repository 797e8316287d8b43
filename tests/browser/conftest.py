"""A browser and the page it opens, on this machine's loopback; both refuse to speak with anything else."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
LOOPBACK = ("127.0.0.1", "localhost", "::1")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def called_out() -> Iterator[list[str]]:
    """Hosts beyond loopback that this process, the server's, tried to reach."""
    seen: list[str] = []
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            seen.append(address[0])
            raise ConnectionRefusedError(f"{address[0]} is not this machine")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket.socket, "connect", guarded)
        yield seen


@pytest.fixture(scope="session")
def address(called_out: list[str]) -> Iterator[str]:
    """Of the page."""
    from planner.web import page
    from planner.web.desk import Desk
    from planner.web.form import Form

    served = page.serve(Desk(), Form(model="sd15"), host="127.0.0.1")
    yield served.local_url
    served.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser of this machine; none is fetched."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert program, f"none of {', '.join(BROWSERS)} is installed: apt-get install chromium"
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def tab(chromium: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A tab of a desktop's or a phone's size, which reaches nothing but loopback and never saw an error."""
    width, height = request.param
    tab = chromium.new_page(viewport={"width": width, "height": height})
    outside: list[str] = []
    failed: list[str] = []
    tab.on("request", lambda asked: outside.append(asked.url) if is_outside(asked.url) else None)
    tab.on("pageerror", lambda error: failed.append(str(error)))
    yield tab
    tab.close()
    assert not outside
    assert not failed


def is_outside(url: str) -> bool:
    scheme, _, rest = url.partition("://")
    return scheme in ("http", "https", "ws", "wss") and not rest.startswith(LOOPBACK)
