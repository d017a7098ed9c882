"""From a folder of images to predictions: train, adapt to classes never seen, predict. The same as three commands.

The folder here is of drawings that the example makes itself: a sub-folder of images for each class.

    python examples/your_images.py
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image

import headstart
from headstart.cli import main as command
from headstart.tasks import glyphs


def draw(folder: Path, part: glyphs.Part, classes: int, images: int) -> Path:
    """A folder of generated characters, black on white, as a person would have it."""
    store = glyphs.store(classes, examples=images, size=32, part=part)
    for name, drawings in zip(store.names, store.images, strict=True):
        (folder / name).mkdir(parents=True)
        for index, drawing in enumerate(drawings):
            Image.fromarray(255 - drawing[0].numpy()).save(folder / name / f"{index}.png")
    return folder


def run(*arguments: str) -> None:
    """A command, as in a terminal."""
    print("$ headstart", *arguments)
    code = command(list(arguments))
    if code:
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--out", type=Path, help="folder for everything; a temporary one unless given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or Path(temporary)
        photos = draw(out / "photos", "train", classes=40, images=10)
        settings = ["--size", "32", "--channels", "1", "--iterations", str(given.iterations), "--mode", "eager"]
        run("train", "my-images", "--data", str(photos), *settings, "--out", str(out / "run"))
        run("evaluate", str(out / "run"), "--num-tasks", "100")

        # Seven classes that are not in the folder, two images of each; the third is to be recognised.
        new = draw(out / "new", "test", classes=7, images=3)
        asked = {}
        for folder in sorted(new.iterdir()):
            asked[folder.name] = (folder / "2.png").rename(out / f"{folder.name}.png")
        run("adapt", str(out / "run"), "--support", str(new), "--out", str(out / "adapted"))

        adapted = headstart.load(out / "adapted")
        answers = {name: adapted.predict(file)[0] for name, file in asked.items()}
    for name, answer in answers.items():
        print(f"{name}: {answer['class']} ({answer['probability']:.0%})")
    right = sum(name == answer["class"] for name, answer in answers.items())
    print(f"{right} of {len(answers)} right.")


if __name__ == "__main__":
    main()
