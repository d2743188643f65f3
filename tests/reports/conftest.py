"""Reports in a real browser: Debian's chromium, driven by Playwright."""

import os
import shutil

import pytest

CHROMIUM = shutil.which("chromium")


#: Most milliseconds until a report is drawn. Only a page that never finishes should reach it, not a slow machine.
STARTED_MS = 120_000


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, env=dict(os.environ))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    """Reports of made-up cohorts: one of usual size, and one whose names look like markup."""
    from tests.reports.cohorts import make_inputs
    from tests.reports.test_report import nasty_inputs
    from tests.reports.written_report import write_report

    return {
        "plain": write_report(tmp_path_factory.mktemp("plain"), make_inputs(0, slides=12, per_slide=20)),
        "nasty": write_report(tmp_path_factory.mktemp("nasty"), nasty_inputs()),
    }


@pytest.fixture
def visit(browser, reports):
    """Open a report. After the test, check that no error was logged and no request left the page."""
    from playwright.sync_api import expect

    contexts, problems = [], []

    def opened(name="plain", anchor="", **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        context.set_default_timeout(STARTED_MS)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append("dialog"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:", "blob:")) or problems.append(request.url),
        )
        page.goto(reports[name].as_uri() + anchor)
        # Playwright's wait_for_function needs eval(), which the page's policy forbids.
        expect(page.locator(".plot:not(.js-plotly-plot)")).to_have_count(0, timeout=STARTED_MS)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []
