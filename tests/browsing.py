"""Pages in a headless Chromium."""

import pathlib

LONGEST = 120_000  # ms that a busy machine may take to load a page of 20 MB


def opened(browser, path: pathlib.Path, **context):
    """Opens the page offline; returns it with its errors and requests."""
    said: list[str] = []
    page = browser.new_context(offline=True, **context).new_page()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda request: (
            said.append(request.url)
            if not request.url.startswith(("file:", "data:", "blob:"))
            else None
        ),
    )
    page.goto(path.as_uri(), timeout=LONGEST)
    page.wait_for_load_state("load")
    return page, said
