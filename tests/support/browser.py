"""A real browser: the Chromium of the system, without a window."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def open_browser() -> Iterator[Any]:
    """A browser of Playwright. Skips the test with the reason if this machine has none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Any, path: str, **context: Any) -> Iterator[tuple[Any, list[str]]]:
    """A report page at its top, and the list of what went wrong: console errors, exceptions, dialogs, requests."""
    opened = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **context})
    page, wrong = opened.new_page(), []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    try:
        page.goto(f"file://{path}")
        page.wait_for_selector("#strip .pic")
        page.evaluate("document.getElementById('gallery').scrollIntoView()")
        page.wait_for_selector("#grid .pic")
        page.evaluate("scrollTo(0, 0)")
        yield page, wrong
    finally:
        opened.close()
