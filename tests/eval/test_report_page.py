"""The report in a real headless browser: a point is clicked, and an answer read."""

from __future__ import annotations

import pytest
from browser import ENTER, ESCAPE, browsing
from report_runs import HOSTILE, make_run, make_sweep

from alignbeam.eval.report.write import write_report

pytest.importorskip("plotly", reason="the extra [report] is not installed")
pytest.importorskip("matplotlib", reason="the extra [report] is not installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    written, _ = write_report([make_run(folder), make_sweep(folder)], folder / "out")
    return written[0].as_uri()


@pytest.fixture
def browser(tmp_path, page):
    with browsing(tmp_path / "profile") as opened:
        opened.go(page)
        opened.wait_for("document.body.dataset.drawn === 'yes'")
        yield opened
        assert opened.complaints() == []
        fetched = opened.run("return performance.getEntriesByType('resource').map((e) => e.name)")
        assert fetched == []


def title(browser):
    return browser.run("return document.getElementById('detail-title').textContent")


def read_first_answer(browser):
    browser.wait_for("document.querySelectorAll('#detail .answer').length > 0")
    browser.run("document.querySelector('#detail .answer summary').click()")
    browser.wait_for("document.querySelector('#detail .answer[open] .said.chosen')")
    return browser.run(
        "return [...document.querySelectorAll('#detail .answer[open] > .said')]"
        ".map((e) => e.textContent)"
    )


def test_report_page_opens_a_point_and_shows_the_answers_it_changed(browser):
    # The last marker of the first chart is alignbeam's: methods are drawn in the run's order.
    x, y = browser.run(
        "const chart = document.querySelector('.js-plotly-plot');"
        "const at = [...chart.querySelectorAll('.scatterlayer .point')].at(-1);"
        "at.scrollIntoView({block: 'center'});"
        "const box = at.getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2];"
    )
    browser.click(x, y)
    browser.wait_for("document.getElementById('detail').open")
    assert title(browser) in ("alignbeam", "best-of-k")
    request, before, after = read_first_answer(browser)
    assert HOSTILE in request
    assert before.startswith("7")
    assert after.startswith("N")
    assert browser.run("return document.images.length") == 0


def test_report_page_works_by_keyboard(browser):
    browser.run(
        "[...document.querySelectorAll('button.method')]"
        ".find((b) => b.textContent === 'alignbeam').focus()"
    )
    browser.keys(ENTER)
    browser.wait_for("document.getElementById('detail').open")
    assert title(browser) == "alignbeam"
    read_first_answer(browser)
    steps = browser.run(
        "return [...document.querySelectorAll('#detail .answer[open] details')]"
        ".map((d) => d.querySelector('summary').textContent)"
    )
    assert any("candidates" in text for text in steps)
    assert any("steered tokens" in text for text in steps)
    browser.keys(ESCAPE)
    browser.wait_for("!document.getElementById('detail').open")
    assert browser.run("return document.activeElement.textContent") == "alignbeam"


@pytest.mark.parametrize("width", [400, 1280])
def test_report_page_never_scrolls_sideways(browser, width):
    browser.emulate(width, 900)
    browser.wait_for(f"document.documentElement.clientWidth === {width}")
    # On a phone, whatever is too wide widens the window.
    browser.wait_for(f"innerWidth === {width} && document.documentElement.scrollWidth <= {width}")


def test_report_page_draws_every_chart(browser):
    drawn = browser.run(
        "return [...document.querySelectorAll('.chart')].filter((e) => !e.querySelector('.chart'))"
        ".map((e) => e.querySelectorAll('.point, .points path').length)"
    )
    assert len(drawn) >= 8
    assert all(count > 0 for count in drawn)
