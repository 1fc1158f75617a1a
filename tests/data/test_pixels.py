"""The rule of each kind of image (docs/images.md), the same for training, evaluation, prediction and Triton."""
import ast
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from fake_triton import preprocessing_model, send_file
from helpers import ROOT, tiny_config
from PIL import Image

from dyvit_deploy.data.listing import list_images
from dyvit_deploy.data.open import open_calibration, open_images
from dyvit_deploy.data.preprocess import resize_and_crop
from dyvit_deploy.data.reading import decode
from dyvit_deploy.settings.preprocessing import Preprocess

# Without a resize, so that each pixel can be compared.
SIDE = 32
SPEC = tiny_config(preprocess=Preprocess(short_side=SIDE))
RAMP = np.tile(np.arange(SIDE, dtype=np.uint8) * 8, (SIDE, 1))
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=2)
GREY = np.repeat(RAMP[..., None], 3, axis=2)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(values, bits, sample_format, photometric=1, content=None):
    """An uncompressed grey TIFF of any type of number, which Pillow itself may not be able to write."""
    data = values.tobytes() if content is None else content
    height, width = values.shape
    entries = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
               (273, 4, 8 + 2 + 12 * 10 + 4), (277, 3, 1), (278, 4, height), (279, 4, len(data)),
               (339, 3, sample_format)]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + data


def png(depth, colour_type, values):
    """A PNG of big-endian `values` [height, bytes of a row]."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour_type, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def with_alpha(pixels):
    return Image.fromarray(np.concatenate([pixels, 255 - RAMP[..., None]], axis=2))


def packed_12_bits(values):
    """Pairs of 12-bit values in 3 bytes, as TIFF has them."""
    first, second = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8).tobytes()


def palette(**options):
    image = Image.fromarray(np.tile(np.arange(SIDE, dtype=np.uint8), (SIDE, 1)), "P")
    image.putpalette(np.repeat(np.arange(SIDE, dtype=np.uint8) * 8, 3).tolist())
    return saved(image, "PNG", **options)


# Values of 16 bits whose lower 8 bits would show a rounding; the upper ones are the ramp.
DEEP = RAMP.astype(np.uint16) * 256 + 255 - RAMP
HALF = Image.fromarray(np.where(RAMP > 100, 255, 0).astype(np.uint8))
BINARY = np.repeat(np.where(RAMP > 100, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
FRAMES = [Image.fromarray(GREY), Image.new("RGB", (SIDE, SIDE), "red")]
CASES = {
    "grey": (saved(Image.fromarray(RAMP), "PNG"), GREY),
    "grey with alpha": (saved(Image.fromarray(np.stack([RAMP, 255 - RAMP], axis=2)), "PNG"), GREY),
    "colour": (saved(Image.fromarray(COLOURS), "PNG"), COLOURS),
    "colour with alpha": (saved(with_alpha(COLOURS), "PNG"), COLOURS),
    "colour with alpha in TIFF": (saved(with_alpha(COLOURS), "TIFF"), COLOURS),
    "palette": (palette(), GREY),
    "palette, a transparent entry": (palette(transparency=3), GREY),
    "palette, alpha per entry": (palette(transparency=bytes(range(SIDE))), GREY),
    "1 bit": (saved(HALF.convert("1"), "PNG"), BINARY),
    "1 bit in TIFF": (saved(HALF.convert("1"), "TIFF"), BINARY),
    "CMYK": (saved(Image.fromarray(255 - COLOURS).convert("CMYK"), "TIFF"), 255 - COLOURS),
    "16-bit grey PNG": (saved(Image.fromarray(DEEP), "PNG"), GREY),
    "16-bit grey TIFF": (saved(Image.fromarray(DEEP), "TIFF"), GREY),
    "16-bit grey TIFF, big-endian": (saved(Image.fromarray(DEEP.astype(">u2")), "TIFF"), GREY),
    "16-bit grey TIFF, white is 0": (tiff(DEEP, 16, 1, photometric=0), 255 - GREY),
    "16-bit grey PGM": (f"P5 {SIDE} {SIDE} 65535\n".encode() + DEEP.astype(">u2").tobytes(), GREY),
    "16-bit colour PNG": (png(16, 2, (COLOURS.astype(np.uint16) * 256 + 200).astype(">u2").reshape(SIDE, -1)), COLOURS),
    "12-bit grey TIFF": (tiff(DEEP, 12, 1, content=packed_12_bits(DEEP >> 4)), GREY),
    "float TIFF, 0 to 1": (saved(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"), GREY),
    "black in 16 bits": (saved(Image.fromarray(0 * DEEP), "PNG"), 0 * GREY),
    "black in float": (saved(Image.fromarray(0 * RAMP.astype(np.float32)), "TIFF"), 0 * GREY),
    "several pages": (saved(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), GREY),
    "animated PNG": (saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), GREY),
    "animated GIF": (saved(FRAMES[0].convert("L"), "GIF", save_all=True, append_images=FRAMES[1:]), GREY),
}
FLOATS = RAMP.astype(np.float32)
REFUSED = {
    "32-bit TIFF": (tiff(DEEP.astype(np.int32), 32, 1), "32-bit pixels"),
    "32-bit TIFF of 8-bit values": (tiff(RAMP.astype(np.int32), 32, 1), "32-bit pixels"),
    "signed 32-bit TIFF": (tiff(-RAMP.astype(np.int32), 32, 2), "signed numbers"),
    "signed 16-bit TIFF": (tiff(DEEP.astype(np.int16), 16, 2), "signed numbers"),
    "signed 8-bit TIFF": (tiff(RAMP.astype(np.int8), 8, 2), "signed numbers"),
    "8-bit values in 16 bits": (saved(Image.fromarray(RAMP.astype(np.uint16)), "PNG"), "16-bit pixels of 248 at most"),
    "12-bit values in 16 bits": (saved(Image.fromarray(DEEP >> 4), "TIFF"), "16-bit pixels of 3968 at most"),
    "float TIFF, 0 to 255": (saved(Image.fromarray(FLOATS), "TIFF"), "floating-point pixels outside 0 to 1"),
    "float TIFF, negative": (saved(Image.fromarray(-FLOATS / 255), "TIFF"), "outside 0 to 1"),
    "float TIFF with NaN": (saved(Image.fromarray(np.where(RAMP > 9, FLOATS / 255, np.nan)), "TIFF"), "outside 0 to 1"),
    "64-bit float TIFF": (tiff(FLOATS.astype(np.float64), 64, 3), "not an image of a known format"),
}


def files(folder, content):
    """The image as the only one of a class, with whatever suffix: the content decides."""
    (folder / "train" / "cat").mkdir(parents=True)
    (folder / "train" / "cat" / "image.png").write_bytes(content)
    return str(folder)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("content, pixels", CASES.values(), ids=CASES)
def test_every_use_of_an_image_has_the_same_pixels(tmp_path, content, pixels):
    folder = files(tmp_path, content)
    assert np.array_equal(np.asarray(decode(io.BytesIO(content))), pixels)
    images = open_images(folder, SPEC, "train")
    trained, _ = images.sample(0, epoch=0)
    assert np.array_equal(np.asarray(trained), pixels)
    for found in (images, open_calibration(folder, SPEC)):
        [batch] = found.batches(1)
        assert np.array_equal(batch.images[0], pixels)
    [place] = list_images([folder], [])
    assert np.array_equal(resize_and_crop(place.read()[0], SPEC), pixels)


@pytest.mark.parametrize("content, reason", REFUSED.values(), ids=REFUSED)
def test_values_whose_range_is_unknown_are_an_error_and_no_black_or_white_image(tmp_path, content, reason):
    folder = files(tmp_path, content)
    with pytest.raises(ValueError, match=reason):
        decode(io.BytesIO(content))
    with pytest.raises(ValueError, match=reason):
        open_images(folder, SPEC, "train").sample(0, epoch=0)
    [place] = list_images([folder], [])
    with pytest.raises(ValueError, match=reason):
        place.read()


@pytest.fixture
def triton_model(monkeypatch):
    """Triton's Python model as the repository has it."""
    model = preprocessing_model(monkeypatch, image_size=[SIDE, SIDE], preprocess={
        "short_side": SIDE, "long_side": None, "interpolation": "bicubic", "squash": False})
    yield model
    model.finalize()


@pytest.mark.parametrize("content, pixels", [case for case in CASES.values() if case[0].startswith(b"\x89PNG")],
                         ids=[name for name, case in CASES.items() if case[0].startswith(b"\x89PNG")])
def test_triton_prepares_files_by_the_same_rules(triton_model, content, pixels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = send_file(triton_model, content)
    assert answer.error is None and np.array_equal(answer.tensors[0][0], pixels)


def test_triton_refuses_what_has_no_rule(triton_model):
    content, _ = REFUSED["8-bit values in 16 bits"]
    answer = send_file(triton_model, content)
    assert "image 0 of the request cannot be read: it has 16-bit pixels of 248 at most" in str(answer.error)


def test_every_image_that_is_opened_names_the_formats_that_it_may_have():
    opened = 0
    for path in (*(ROOT / "dyvit_deploy").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            # Also functools.partial(Image.open, ...).
            if isinstance(node, ast.Call) and "Image.open" in map(ast.unparse, (node.func, *node.args)):
                opened += 1
                assert "formats" in [keyword.arg for keyword in node.keywords], f"{path}:{node.lineno}"
    assert opened >= 3
