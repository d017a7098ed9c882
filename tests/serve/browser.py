"""Debian's Chromium, driven by Playwright, and what the tests of the page do in it."""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested by Playwright: pip install playwright")

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
Stroke = Sequence[tuple[float, float]]
"""Points of a square of side 1."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, or a skip that says what is missing."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Debian's Chromium is not here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One visitor's page, and what went wrong on it."""

    def __init__(self, browser: Any, address: str, **options: Any):
        settings = {"viewport": {"width": 1080, "height": 900}, "reduced_motion": "reduce", **options}
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.wrong: list[str] = []
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.wrong.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(f"{request.url}: {request.failure}"))
        self.page.on("response", lambda got: got.status >= 400 and self.wrong.append(f"{got.url}: {got.status}"))
        self.page.goto(address)
        self.page.wait_for_selector("[role=tab]")

    def tab(self, name: str) -> None:
        """Show another tab."""
        self.page.click(f'role=tab[name="{name}"]')

    def pad(self, name: str) -> Any:
        """The square of a character, or of the one to recognise ("?")."""
        title = "Character to recognise" if name == "?" else f"Character {name}"
        return self.page.locator(f'canvas[aria-label^="{title}, "]')

    def draw(self, name: str, strokes: Sequence[Stroke]) -> None:
        """Draw by the mouse."""
        pad = self.pad(name)
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        for stroke in strokes:
            places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
            self.page.mouse.move(*places[0])
            self.page.mouse.down()
            for place in places[1:]:
                self.page.mouse.move(*place, steps=3)
            self.page.mouse.up()

    def probabilities(self) -> list[list[float]]:
        """What the page's bars show, per step and class, once the answer is there."""
        self.page.wait_for_selector('#panel-characters .verdict[aria-busy="false"] .verdict-line')
        bars = self.page.eval_on_selector_all(".steps .bar", "bars => bars.map(bar => parseFloat(bar.style.width))")
        steps = len(bars) // 5
        return [[bars[row * steps + step] / 100 for row in range(5)] for step in range(steps)]

    def winner(self) -> str:
        """The class that the page marks after the last step."""
        marked = self.page.locator(".steps tr", has=self.page.locator("td:last-child.best"))
        return marked.locator("th").inner_text().strip()

    def click_points(self, points: Sequence[tuple[float, float]]) -> None:
        """Add points of a curve by the mouse, where the plot's own axes show them."""
        for number, (x, y) in enumerate(points):
            self.page.mouse.click(*self._pixel(x, y))
            self.page.wait_for_selector(f'.plot[aria-label^="Plot of {number + 1} points"]')

    def errors(self, network: str) -> list[float]:
        """A network's error before adaptation and after each step."""
        self.page.wait_for_selector('#panel-curve .verdict[aria-busy="false"]', state="attached")
        shown = self.page.wait_for_selector(f'dl .{network} dd[data-errors]:not([data-errors=""])')
        return [float(value) for value in shown.get_attribute("data-errors").split()]

    def scroll_width(self) -> int:
        """How wide the page is, in pixels."""
        return self.page.evaluate("document.documentElement.scrollWidth")

    def close(self) -> None:
        """End the visit; fails if anything went wrong on the page."""
        self.context.close()
        assert not self.wrong, self.wrong

    def _pixel(self, x: float, y: float) -> tuple[float, float]:
        ticks = self.page.eval_on_selector_all(
            ".plot text",
            """texts => texts.map(text => {
              const { x, y, width, height } = text.getBoundingClientRect();
              return [text.getAttribute("text-anchor"), text.textContent, x + width / 2, y + height / 2];
            })""",
        )
        across = {text: place for anchor, text, place, _ in ticks if anchor == "middle"}
        down = {text: place for anchor, text, _, place in ticks if anchor == "end"}
        at = [between["0"] + value * (between["4"] - between["0"]) / 4 for between, value in ((across, x), (down, y))]
        return at[0], at[1]


def circle(x: float = 0.5, y: float = 0.5, radius: float = 0.25) -> Stroke:
    """A round stroke."""
    turns = [2 * math.pi * part / 16 for part in range(17)]
    return [(x + radius * math.sin(turn), y - radius * math.cos(turn)) for turn in turns]


SHAPES: dict[str, list[Stroke]] = {
    "A": [[(0.5, 0.2), (0.5, 0.8)], [(0.2, 0.5), (0.8, 0.5)]],
    "B": [circle()],
    "C": [[(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]],
    "D": [[(0.35, 0.2), (0.35, 0.8)], [(0.65, 0.2), (0.65, 0.8)]],
    "E": [[(0.5, 0.2), (0.2, 0.75), (0.8, 0.75), (0.5, 0.2)]],
}
"""Five simple characters."""

A_AGAIN: list[Stroke] = [[(0.53, 0.24), (0.5, 0.83)], [(0.22, 0.52), (0.8, 0.48)]]
"""The first of them, not quite the same."""


def wave(x: float) -> float:
    """A sine of which the tests show points."""
    return 3 * math.sin(x - 1)


WAVE_POINTS = [(x, wave(x)) for x in (-4.5, -3.6, -2.5, -1.4, -0.6, 0.4, 1.5, 2.6, 3.5, 4.4)]
