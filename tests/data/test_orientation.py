"""The EXIF orientation of an image is ignored, as in training, and applied with --orient, the same everywhere."""
import io
import struct
import zlib

import numpy as np
import pytest
from fake_triton import preprocessing_model, send_file
from helpers import dyvit, photo_folder, tiny_checkpoint, tiny_config, tiny_graph
from PIL import Image, ImageOps

import dyvit_deploy as dv
from dyvit_deploy.config import with_orientation
from dyvit_deploy.data.listing import list_images
from dyvit_deploy.data.preprocess import orientation, resize_and_crop
from dyvit_deploy.data.reading import decode, read_images
from dyvit_deploy.settings.preprocessing import Preprocess

SIDE = 32
SPEC = tiny_config(preprocess=Preprocess(short_side=SIDE))
ORIENTED = with_orientation(SPEC, True)
# Neither square nor symmetrical.
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
SHORT, LONG = 3, 4


def exif(value, kind=SHORT, endian="<", tag=274, offset=8, count=1):
    """An EXIF block with one entry."""
    head = (b"II*\0" if endian == "<" else b"MM\0*") + struct.pack(f"{endian}I", offset)
    field = struct.pack(f"{endian}H2x" if kind == SHORT else f"{endian}I", value)
    return head + bytes(offset - 8) + struct.pack(f"{endian}HHHI", 1, tag, kind, count) + field + bytes(4)


def saved(content, format="JPEG", image=None):
    file = io.BytesIO()
    image = image or Image.fromarray(PIXELS)
    image.save(file, format, exif=b"Exif\0\0" + content, **({"lossless": True} if format == "WEBP" else {}))
    return file.getvalue()


def with_late_chunk(png, content):
    """A PNG file with the EXIF block behind the pixels."""
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    return png[:-12] + chunk + png[-12:]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_ignored_by_default_and_applied_on_request(tmp_path, monkeypatch, value, format):
    content = saved(exif(value, endian="<>"[value % 2]), format)
    (tmp_path / "photo.jpg").write_bytes(content)
    with Image.open(io.BytesIO(content)) as image:
        plain, turned = image.convert("RGB"), ImageOps.exif_transpose(image).convert("RGB")
    [place] = list_images([str(tmp_path)], [])
    for spec, expected in ((SPEC, plain), (ORIENTED, turned)):
        expected.info.clear()
        expected = resize_and_crop(expected, SPEC)
        [read] = read_images([("photo", place.read)], spec, 1)
        assert np.array_equal(read.pixels, expected) and read.turned is (value != 1)
        model = preprocessing_model(monkeypatch, image_size=[SIDE, SIDE], orient=spec.orient, preprocess={
            "short_side": SIDE, "long_side": None, "interpolation": "bicubic", "squash": False})
        assert np.array_equal(send_file(model, content).tensors[0][0], expected)
        model.finalize()
    assert value == 1 or not np.array_equal(resize_and_crop(plain, SPEC), resize_and_crop(turned, SPEC))


GREY16 = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 256)
BLOCKS = {
    "32 bits": (saved(exif(6, LONG)), 6), "further on": (saved(exif(8, offset=100)), 8),
    "16-bit grey": (saved(exif(3), "PNG", GREY16), 3),
    "behind the pixels": (with_late_chunk(saved(b"", "PNG"), exif(5)), 5),
    "another tag": (saved(exif(6, tag=275)), 1), "a value that does not exist": (saved(exif(9)), 1),
    "zero": (saved(exif(0)), 1), "huge": (saved(exif(2**32 - 2, LONG)), 1), "no block": (saved(b""), 1),
    "cut": (saved(exif(6)[:15]), 1), "no TIFF": (saved(b"XX" + exif(6)[2:]), 1),
    "an offset behind the end": (saved(exif(6)[:4] + b"\xff\xff\xff\x7f"), 1),
    "a rational number": (saved(exif(6, 5)), 1), "text": (saved(exif(0x36, 2)), 1),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("content, value", BLOCKS.values(), ids=BLOCKS)
def test_a_damaged_or_unusual_block_is_no_error(content, value):
    image = decode(io.BytesIO(content))
    assert orientation(image) == value and resize_and_crop(image, ORIENTED).shape == (SIDE, SIDE, 3)


def test_tiff_is_turned_by_pillow_itself_and_counts_as_upright():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "TIFF", tiffinfo={274: 6})
    image = decode(file)
    assert image.size == (24, 40) and orientation(image) == 1


@pytest.fixture
def photos(tmp_path):
    """Five photos, of which a phone turned two."""
    folder = photo_folder(tmp_path / "photos", 3)
    for value in (1, 6, 8):
        (folder / f"phone{value}.jpg").write_bytes(saved(exif(value)))
    return folder


def test_predict_says_once_how_many_images_have_an_orientation_and_applies_it_on_request(tmp_path, photos):
    graph, out = tiny_graph(tmp_path), tmp_path / "out.csv"
    result = dyvit("predict", graph, photos, "--csv", out, "--batch", 2)
    assert result.output.count("2 of 6 images have an EXIF orientation, which was not applied, as in training; "
                               "--orient applies it.") == 1
    ignored = out.read_text()
    result = dyvit("predict", graph, photos, "--csv", out, "--orient")
    assert result.exit_code == 0 and "EXIF" not in result.output
    changed = [a.split(",")[0] for a, b in zip(ignored.splitlines(), out.read_text().splitlines()) if a != b]
    assert changed == [str(photos / f"phone{value}.jpg") for value in (6, 8)]


def test_a_resumed_run_counts_the_images_of_both_runs(tmp_path, photos):
    graph, config = tiny_graph(tmp_path), dv.PredictConfig(batch=5, csv=str(tmp_path / "out.csv"))

    def stop(rows):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        dv.predict_images(graph, photos, config, watch=stop)
    report = dv.predict_images(graph, photos, config)
    assert (report.resumed, report.turned) == (5, 2) and "2 of 6 images" in report.notes[0]


def test_visualize_draws_images_upright_on_request(tmp_path):
    pytest.importorskip("matplotlib")
    turned = Image.open(io.BytesIO(saved(exif(6), "PNG")))
    for folder, content in (("phone", saved(exif(6), "PNG")),
                            ("upright", saved(b"", "PNG", ImageOps.exif_transpose(turned)))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "photo.png").write_bytes(content)
    checkpoint, drawn = tiny_checkpoint(tmp_path), []
    for source, orient in (("upright", False), ("phone", True), ("phone", False)):
        out = tmp_path / f"{source} {orient}"
        dv.visualize([checkpoint], [tmp_path / source], out, dv.VisualizeConfig(orient=orient))
        drawn.append([path.read_bytes() for path in sorted(out.iterdir())])
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_triton_repository_has_the_rule_of_its_export(tmp_path):
    pytest.importorskip("tritonclient")
    from dyvit_deploy.serving.config import ServingConfig
    from dyvit_deploy.serving.export import export_repository
    from dyvit_deploy.serving.repository import read_repository
    graph = tiny_graph(tmp_path)
    for orient, words in ((True, "is applied"), (False, "is ignored, as in training")):
        folder = tmp_path / str(orient)
        export_repository(graph, folder, ServingConfig(orient=orient))
        [model] = read_repository(folder)
        readme = " ".join((folder / "README.md").read_text().split())
        assert model.orient is orient and f"EXIF orientation of a file {words}" in readme
