import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.tasks.images import open_image, read_image


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def test_one_bit_drawing_is_smoothed_not_sampled() -> None:
    drawing = Image.new("1", (105, 105), 1)
    drawing.paste(0, (20, 50, 85, 53))
    ink = read_image(saved(drawing), 28, ink=True)
    expected = 255 - np.asarray(drawing.convert("L").resize((28, 28), Image.Resampling.LANCZOS)).astype(int)
    assert ink.shape == (1, 28, 28)
    assert ink.dtype == torch.uint8
    assert torch.equal(ink[0].long(), torch.from_numpy(expected))
    assert ((ink > 0) & (ink < 255)).any()


def test_transparent_paper_is_white() -> None:
    for mode, colour in (("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))):
        assert read_image(saved(Image.new(mode, (9, 9), colour)), 4, ink=True).max() == 0
    palette = Image.new("P", (9, 9), 0)
    assert read_image(saved(palette, transparency=0), 4, ink=True).max() == 0


def test_exif_orientation_is_honoured() -> None:
    image = Image.new("L", (8, 8), 255)
    image.paste(0, (0, 0, 8, 4))  # ink above
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    upright = read_image(saved(image, exif=exif), 8, ink=True)[0]
    assert upright[6:].min() == 255
    assert upright[:2].max() == 0


def test_ink_keeps_proportions_and_photographs_fill_the_square() -> None:
    wide = Image.new("RGB", (60, 20), "black")
    ink = read_image(saved(wide), 30, ink=True)[0]
    assert ink[:9].max() == 0
    assert ink[11:19].min() == 255
    photograph = read_image(saved(wide), 30, ink=False, channels=3)
    assert photograph.shape == (3, 30, 30)
    assert photograph.max() == 0


def test_colours_keep_their_channels() -> None:
    image = read_image(saved(Image.new("RGB", (5, 5), (10, 20, 30))), 2, ink=False, channels=3)
    assert image[:, 0, 0].tolist() == [10, 20, 30]


def test_sixteen_bit_grey_is_scaled() -> None:
    grey = Image.fromarray(np.full((6, 6), 128 * 257, dtype=np.uint16))
    assert read_image(saved(grey), 3, ink=False).unique().tolist() == [128]


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    path = tmp_path / "letter.png"
    path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"letter\.png"):
        read_image(path, 28, ink=True)
    with pytest.raises(ValueError, match="upload 3"):
        read_image(io.BytesIO(b""), 28, ink=True, name="upload 3")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "absent.png", 28, ink=True)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns, then raises or decodes what is there
def test_damaged_files_raise_value_error_or_decode() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
    refused = 0
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = saved(picture, kind).getvalue()
        for _ in range(40):
            damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
            for position in rng.integers(0, min(len(damaged), 200), 5):
                damaged[position] = rng.integers(256)
            try:
                assert read_image(io.BytesIO(damaged), 8, ink=False).shape == (1, 8, 8)
            except ValueError:
                refused += 1
    assert refused > 120


def test_absurd_sizes_are_refused_before_decoding() -> None:
    huge = saved(Image.new("1", (20_000, 9_000)))
    with pytest.raises(ValueError, match="pixel"):
        read_image(huge, 28, ink=True)
    with pytest.raises(ValueError, match="16x16 pixels, more than the 100 allowed"):
        open_image(saved(Image.new("L", (16, 16))), max_pixels=100)
    thread = read_image(saved(Image.new("L", (5_000, 1))), 28, ink=True)  # never a 5000x5000 sheet of paper
    assert thread.shape == (1, 28, 28)
