"""The playground in a real headless browser, used by keyboard alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from browser import ENTER, RIGHT, TAB, browsing
from serving import KEY, judge_of, serving
from tiny_models import random_pair

PROBLEM = "Tom has 4 apples and gets 3 more. How many apples does he have now?"


@pytest.fixture
def browser(tmp_path):
    with browsing(tmp_path / "profile") as opened:
        yield opened


def ask_by_keyboard(browser, running, prompt):
    browser.go(running.url.replace("http://", f"http://me:{KEY}@") + "/")
    browser.run("document.getElementById('prompt').focus();"
                "document.getElementById('prompt').select();")  # fmt: skip
    browser.keys(prompt + TAB)
    browser.keys(RIGHT * 2)  # alpha: 0.5 -> 0.6
    browser.keys(TAB + RIGHT)  # N
    browser.keys(TAB + RIGHT)  # K
    browser.keys(TAB + TAB + ENTER)
    browser.wait_for("document.getElementById('state').textContent === 'done'")


def test_playground_works_by_keyboard_in_a_real_browser(browser):
    hostile = "<img src=x onerror=alert(1)>"
    with serving(random_pair(), judge_of(), playground=True) as running:
        ask_by_keyboard(browser, running, hostile)
        shown = browser.run(
            "const t = (id) => document.getElementById(id).textContent;"
            "return [t('alpha-out'), t('steps-out'), t('beams-out'), t('target'), t('answer'),"
            "document.querySelectorAll('#judge tr').length,"
            "document.querySelectorAll('#judge tr.chosen').length,"
            "document.querySelectorAll('#shares li').length, document.images.length]"
        )
        assert shown[:3] == ["0.6", "5", "3"]  # one step above what the operator set
        with running.client() as client:
            asked = {"prompt": hostile, "alpha": 0.6, "mix_steps": 5, "beams": 3, "max_tokens": 64}
            said = client.post("/playground", json=asked).json()
        assert shown[3:5] == [said["target"], said["text"]]
        assert shown[5:] == [3, 1, len(said["alignbeam"]["steps"]), 0]
        assert browser.complaints() == []


def test_playground_shows_errors_as_text(browser):
    with serving(random_pair(), playground=True, max_batch_cells=100) as running:
        browser.go(running.url.replace("http://", f"http://me:{KEY}@") + "/")
        browser.run("document.getElementById('form').requestSubmit()")
        browser.wait_for("document.getElementById('state').className === 'error'")
        words = browser.run("return document.getElementById('state').textContent")
        assert "exceed the 75" in words  # a client's share of the batch


def test_playground_draws_histograms_of_the_embedded_judge(browser, trio):
    with serving((trio.target, trio.anchor), trio.judge, trio.config, playground=True) as running:
        ask_by_keyboard(browser, running, PROBLEM)
        bars = browser.run(
            "return [...document.querySelectorAll('#judge .bars')]"
            ".map((bars) => bars.getAttribute('aria-label'))"
        )
        assert len(bars) == 4
        assert all(label.count("level") == 5 for label in bars)
        keep = os.environ.get("ALIGNBEAM_PICTURE")  # how the picture in the docs is made
        for width, height, name in ((1100, 1020, keep), (400, 1700, keep and f"{keep}-narrow.png")):
            browser.emulate(width, height)
            assert browser.run("return document.documentElement.scrollWidth") <= width
            picture = browser.screenshot()
            assert picture.startswith(b"\x89PNG")
            if name:
                Path(name).write_bytes(picture)
