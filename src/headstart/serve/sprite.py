"""`python -m headstart.serve.sprite --data DATA` makes the page's example drawings: one image of Omniglot's drawings.

They are of test characters, at full size and 1 bit per pixel; which, depends on the seed alone.
"""

import argparse
import io
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from headstart.tasks import omniglot
from headstart.tasks.archives import entries
from headstart.tasks.images import open_image

FOLDER = Path(__file__).parent / "page" / "omniglot"

SIZE = 105
COLUMNS = 16
_ARCHIVES = ("images_background.zip", "images_evaluation.zip")
_DRAWING = r"[^/]+/([^/.][^/]*/character\d\d)/\d{4}_(\d\d)\.png"
_ENTRY_BYTES = 1 << 16


def make(data: Path, folder: Path, characters: int = 60, drawings: int = 4, seed: int = 0) -> None:
    """Writes `drawings.png`, `characters.json` and Omniglot's licence to a folder.

    Args:
        data: A folder with Omniglot's archives and its LICENSE in `omniglot/`.
        folder: Where to write.
        characters: How many of the test characters of the recipes' split.
        drawings: How many drawings of each, of the same people throughout.
        seed: Of the choice of characters and people.

    Raises:
        FileNotFoundError: If an archive or the licence is not there.
    """
    names = omniglot.split(omniglot.load(data), "released", "test").names
    chosen = random.Random(seed)
    characters_chosen = sorted(chosen.sample(sorted(names), characters))
    drawers = sorted(chosen.sample(range(1, 21), drawings))
    licence = (data / "omniglot" / "LICENSE").read_text(encoding="utf-8")
    found = _drawings(data, [(name, f"{drawer:02d}") for name in characters_chosen for drawer in drawers])
    folder.mkdir(parents=True, exist_ok=True)
    _sheet(found).save(folder / "drawings.png", optimize=True)
    listing = {
        "size": SIZE,
        "columns": COLUMNS,
        "drawings": drawings,
        "drawers": drawers,
        "characters": characters_chosen,
    }
    (folder / "characters.json").write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")
    (folder / "LICENSE").write_text(licence, encoding="utf-8")


def _drawings(data: Path, wanted: Sequence[tuple[str, str]]) -> list[Image.Image]:
    """The drawings of (character, drawer), in that order."""
    found: dict[tuple[str, str], Image.Image] = {}
    for name in _ARCHIVES:
        for match, content in entries(data / "omniglot" / name, _DRAWING, _ENTRY_BYTES):
            if match.groups() in wanted:
                found[match[1], match[2]] = open_image(io.BytesIO(content), name=match[0], max_pixels=SIZE**2)
    return [found[key] for key in wanted]


def _sheet(drawings: Sequence[Image.Image]) -> Image.Image:
    """All drawings in rows of `COLUMNS`, black on white."""
    rows = -(-len(drawings) // COLUMNS)
    sheet = Image.new("L", (COLUMNS * SIZE, rows * SIZE), "white")
    for index, drawing in enumerate(drawings):
        sheet.paste(drawing, (index % COLUMNS * SIZE, index // COLUMNS * SIZE))
    return sheet.convert("1", dither=Image.Dither.NONE)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Make the page's example drawings.")
    parser.add_argument("--data", type=Path, default=os.environ.get("HEADSTART_DATA"), help="folder with omniglot/")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where to write")
    given = parser.parse_args()
    if given.data is None:
        parser.error("--data or HEADSTART_DATA must name the folder with omniglot/ in it")
    make(given.data, given.out)


if __name__ == "__main__":
    main()
