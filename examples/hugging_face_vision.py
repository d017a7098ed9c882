"""Meta-train a Hugging Face vision transformer on your own images, and adapt a part of it to new classes.

The transformer is made from its configuration: nothing is downloaded. `vit` is the factory; what it returns answers
with an object that has `logits`, which is all that is asked of it. On the command line, in this folder:

    headstart train my-images --data PHOTOS --model hugging_face_vision:vit --learner bias-only

Here the images are generated characters, so that it runs without any. Needs the extra `hf`.

    python examples/hugging_face_vision.py
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from headstart.adapted import load_run
from headstart.cli import main as headstart
from headstart.tasks import glyphs
from headstart.training.run import Run

SIZE = 32


def vit(outputs: int) -> nn.Module:
    """A small vision transformer for `outputs` classes."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=SIZE,
        patch_size=8,
        num_channels=3,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    config.num_labels = outputs
    return ViTForImageClassification(config)


def draw(folder: Path, classes: int, part: glyphs.Part) -> Path:
    """A folder with a sub-folder of eight drawings for each class."""
    for number, images in enumerate(glyphs.store(classes, examples=8, size=SIZE, part=part).images):
        (folder / f"{part} {number}").mkdir(parents=True)
        for index, image in enumerate(images):
            Image.fromarray(255 - image[0].numpy()).save(folder / f"{part} {number}" / f"{index}.png")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--learner", default="bias-only", help="such as bias-only, anil, lora, proto-maml")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos, new = draw(Path(folder) / "photos", 20, "train"), draw(Path(folder) / "new", 5, "test")
        asked = {
            "--data": photos,
            "--out": Path(folder) / "run",
            "--model": f"{Path(__file__).stem}:vit",
            "--size": SIZE,
            "--learner": options.learner,
            "--iterations": options.iterations,
            "--validate-every": options.iterations,
        }
        code = headstart(["train", "my-images", *(str(word) for pair in asked.items() for word in pair)])
        if code:
            raise SystemExit(code)
        model = load_run(Run(Path(folder) / "run"), checkpoint="last")
        adapted = model.adapt(model.inputs.support(new))
        own, of = model.learner.adapted_names, sum(1 for _ in model.learner.model.parameters())
        print(f"{len(own)} of {of} parameter tensors adapt, {own[0]} the first of them.")
        files = sorted(new.glob("*/7.png"))
        answers = [adapted.predict(file)[0]["class"] for file in files]
    right = sum(answer == file.parent.name for answer, file in zip(answers, files, strict=True))
    print(f"{right} of {len(files)} drawings named rightly.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
