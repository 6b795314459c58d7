"""A real Chromium, and a page that must neither log an error nor ask for anything outside."""

import os
import shutil
import subprocess

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def chromium():
    """The browser's path; installed where it may be, else None."""
    if not shutil.which("chromium") and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        )
    return shutil.which("chromium")


@pytest.fixture(scope="session")
def browser():
    path = chromium()
    if path is None:
        reason = "LEFT OUT: the tests in a browser need Chromium (on Debian, root may have it installed)"
        if os.environ.get("CI"):
            raise RuntimeError(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser, request):
    options = getattr(request, "param", {})
    context = browser.new_context(accept_downloads=True, **{"viewport": {"width": 1280, "height": 800}} | options)
    found = context.new_page()
    found.wrong = []
    found.on("console", lambda message: message.type in ("error", "warning") and found.wrong.append(message.text))
    found.on("pageerror", lambda error: found.wrong.append(str(error)))
    found.on(
        "request", lambda asked: asked.url.startswith(("file:", "data:", "blob:")) or found.wrong.append(asked.url)
    )
    yield found
    context.close()
    assert found.wrong == []
