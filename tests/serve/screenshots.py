"""`python tests/serve/screenshots.py ADDRESS` takes the screenshots of docs/page.md from a server at that address.

Started as `headstart serve RUN`, for the third, with a run of characters of any number of classes.
"""

import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from serve.browser import Visit, chromium

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "src" / "headstart" / "serve" / "page" / "omniglot"
DESKTOP = {"viewport": {"width": 1060, "height": 800}, "device_scale_factor": 1.5}
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
SEEDED = "let s = %d; Math.random = () => (s = (s * 1664525 + 1013904223) %% 2 ** 32) / 2 ** 32"


def characters(visit: Visit, seed: int) -> None:
    """Omniglot's, twice: the first answer took longer."""
    for _ in range(2):
        visit.page.evaluate(SEEDED % seed)
        visit.page.click("text=Fill with Omniglot characters")
        visit.probabilities()
        visit.page.click('#panel-characters >> text="Clear all"')
    visit.page.evaluate(SEEDED % seed)
    visit.page.click("text=Fill with Omniglot characters")
    visit.probabilities()
    visit.page.wait_for_timeout(500)


def curve(visit: Visit, seed: int) -> None:
    """A random sine."""
    visit.tab("Curve")
    for _ in range(2):
        visit.page.evaluate(SEEDED % seed)
        visit.page.click("text=Draw a random sine")
        visit.errors("maml")
    visit.page.wait_for_timeout(500)


def your_model(visit: Visit) -> None:
    """Three classes of two images each, and two to name."""
    visit.tab("Your model")
    visit.page.click("text=Add a class")
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, character) in enumerate((("eyes", 3), ("flag", 20), ("snake", 41)), start=1):
            visit.page.fill(f'input[aria-label="Name of class {index}"]', name)
            files = [drawing(Path(folder), f"{name}-{number}", character, number) for number in (0, 1)]
            visit.page.set_input_files(f'input[aria-label="Images of {name}"]', files)
        queries = [drawing(Path(folder), "first", 41, 2), drawing(Path(folder), "second", 3, 3)]
        visit.page.set_input_files('input[aria-label="Images to name"]', queries)
        visit.page.click("text=Adapt and predict")
        visit.page.wait_for_selector(".predictions")
    visit.page.wait_for_timeout(500)


def drawing(folder: Path, name: str, character: int, number: int) -> Path:
    """One of the page's example drawings as a file."""
    listing = json.loads((EXAMPLES / "characters.json").read_text(encoding="utf-8"))
    index, size = character * listing["drawings"] + number, listing["size"]
    left, top = index % listing["columns"] * size, index // listing["columns"] * size
    path = folder / f"{name}.png"
    with Image.open(EXAMPLES / "drawings.png") as sheet:
        sheet.crop((left, top, left + size, top + size)).save(path)
    return path


def save(visit: Visit, name: str) -> None:
    """The whole page, in few colours, which it has."""
    visit.page.mouse.move(0, 0)
    shot = Image.open(io.BytesIO(visit.page.screenshot(full_page=True))).convert("RGB")
    shot.quantize(128, dither=Image.Dither.NONE).save(ROOT / "docs" / "figures" / f"page-{name}.png", optimize=True)


def main(address: str) -> None:
    """All four."""
    with chromium() as browser:
        for name, options, show in (
            ("characters", DESKTOP, lambda visit: characters(visit, 13)),
            ("phone", PHONE, lambda visit: characters(visit, 5)),
            ("curve", DESKTOP, lambda visit: curve(visit, 7)),
            ("your-model", DESKTOP, your_model),
        ):
            visit = Visit(browser, address, **options)
            show(visit)
            save(visit, name)
            visit.close()


if __name__ == "__main__":
    main(sys.argv[1])
