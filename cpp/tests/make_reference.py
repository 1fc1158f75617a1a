#!/usr/bin/env python3
"""Writes the reference of the C++ tests: small models, images, and the results of the Python runtime.

    python cpp/tests/make_reference.py FOLDER

FOLDER/manifest.json lists the files; arrays are raw bytes in row order. A reference that is newer than this script and
the package is kept. If dyvit_deploy cannot be imported, the exit code is 77, which ctest counts as skipped.
"""
from __future__ import annotations

import importlib
import importlib.util
import json
import struct
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PHOTOS = ROOT.parent / "shared" / "images"
SKIPPED = 77
SCENES = 8


def skip_unless_importable() -> None:
    try:
        for module in ("sklearn", "dyvit_deploy.model.zoo", "dyvit_deploy.runners.ort"):
            importlib.import_module(module)
    except ImportError as error:
        print(f"skipped: {error}; pip install '.[demo]' for this Python ({sys.executable}).")
        sys.exit(SKIPPED)


def is_fresh(manifest: Path) -> bool:
    sources = [Path(__file__), *(ROOT / "dyvit_deploy").rglob("*.py")]
    return manifest.is_file() and manifest.stat().st_mtime > max(source.stat().st_mtime for source in sources)


def distorted_rows_first(image, spec):
    """`image` as `resize_and_crop` prepares it where its aspect ratio is not kept, first the rows and then the columns.

    Pillow before 13 always uses this order, and so does ONNX Runtime. Pillow 13 begins with the columns for some
    shapes, which gives different levels, because the intermediate image is rounded to bytes.
    """
    from dyvit_deploy.data.preprocess import RESAMPLING, resize_and_crop

    steps, (height, width) = spec.preprocess, spec.image_size
    if steps.squash:
        width = steps.long_side if steps.long_side and width > height else steps.short_side
    rows = image.convert("RGB").resize((width, image.height), RESAMPLING[steps.interpolation])
    return resize_and_crop(rows, spec)


class Reference:
    """Collects the manifest while files are written to `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = {"models": [], "decoded": [], "oriented": [], "resized": [], "plan": None}

    def array(self, name: str, values) -> str:
        values.tofile(self.folder / name)
        return name

    def model(self, name: str, files: list[str], images) -> None:
        """The results of the Python runner for `images`, uint8 [B, H, W, 3], which are `files` resized and cropped."""
        from dyvit_deploy.runners.ort import OrtRunner

        with OrtRunner(self.folder / name, device="cpu") as runner:
            feed = runner.prepare(images)
            outputs = runner.infer(feed)
            facts = runner.facts
        stem = Path(name).stem
        self.manifest["models"].append({
            "file": name, "images": files, "input": str(feed.dtype), "shape": feed.shape, "model": facts.model.name,
            "kept_counts": facts.keep_counts, "class_names": facts.class_names,
            "feed": self.array(f"{stem}.feed", feed), "logits": self.array(f"{stem}.logits", outputs.logits),
            "kept": [self.array(f"{stem}.kept{i}", stage) for i, stage in enumerate(outputs.kept)]})

    def decoded(self, file: Path, kind: str = "decoded") -> None:
        """The pixels of `file` as it is, or with its EXIF orientation applied if `kind` is "oriented"."""
        import numpy as np

        from dyvit_deploy.data.preprocess import upright
        from dyvit_deploy.data.reading import decode

        image = decode(file)
        pixels = np.asarray(upright(image) if kind == "oriented" else image)
        self.manifest[kind].append({"file": str(file), "height": pixels.shape[0], "width": pixels.shape[1],
                                    "pixels": self.array(f"{file.name}.{kind}.pixels", pixels)})

    def resized(self, file: Path, size: tuple[int, int], short_side: int | None, interpolation: str,
                squash: bool = False, long_side: int | None = None) -> None:
        from PIL import Image

        from dyvit_deploy.data.preprocess import resize_and_crop
        from dyvit_deploy.runners.base import ForeignImages
        from dyvit_deploy.settings.preprocessing import Preprocess

        steps = Preprocess(short_side, interpolation=interpolation, squash=squash, long_side=long_side)
        spec = ForeignImages(size, steps)
        name = f"{file.name}.{'x'.join(map(str, size))}.{steps.resize.replace(' ', '-')}.{interpolation}"
        resize = resize_and_crop if short_side and not squash else distorted_rows_first
        self.manifest["resized"].append({
            "file": str(file), "height": size[0], "width": size[1], "short_side": short_side or 0,
            "long_side": long_side or 0, "squash": squash, "interpolation": interpolation,
            "pixels": self.array(name, resize(Image.open(file), spec))})


def add_digits(reference: Reference) -> None:
    """The demo student on scenes of digits, with float32 and uint8 input, and with a batch that is fixed."""
    import onnx
    from PIL import Image

    from dyvit_deploy.data.digits import DigitScenes
    from dyvit_deploy.demo.quickstart import STUDENT
    from dyvit_deploy.export.config import ExportConfig
    from dyvit_deploy.export.onnx import export_onnx
    from dyvit_deploy.model import zoo

    images = next(DigitScenes(zoo.get("digits-s"), limit=SCENES).batches(SCENES)).images
    files = [f"scene{i}.png" for i in range(SCENES)]
    for file, image in zip(files, images):
        Image.fromarray(image).save(reference.folder / file)
    for kind in ("float32", "uint8"):
        name = f"digits-{kind}.onnx"
        export_onnx(STUDENT, reference.folder / name, ExportConfig(with_tokens=True, input=kind))
        reference.model(name, files, images)
    graph = onnx.load(reference.folder / "digits-float32.onnx")
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    del graph.graph.value_info[:]
    onnx.save(graph, reference.folder / "fixed.onnx")
    for name, text in (("foreign.onnx", None), ("future.onnx", '{"format":99}'), ("odd.onnx", '{"format":1}')):
        del graph.metadata_props[:]
        if text:
            graph.metadata_props.add(key="dyvit", value=text)
        onnx.save(graph, reference.folder / name)


def add_photo_model(reference: Reference, files: list[Path]) -> None:
    """A small ViT of 224 pixels with fixed random weights, preprocessed like timm's models."""
    import numpy as np
    import torch
    from PIL import Image

    from dyvit_deploy.artifacts.facts import ArtifactFacts
    from dyvit_deploy.config import ModelConfig, PruneConfig
    from dyvit_deploy.data.preprocess import resize_and_crop
    from dyvit_deploy.export.config import ExportConfig
    from dyvit_deploy.export.onnx import export_model
    from dyvit_deploy.model.dynamicvit import DynamicViT
    from dyvit_deploy.settings.preprocessing import Preprocess

    torch.manual_seed(0)
    config = ModelConfig(name="tiny-224", builder="vit", image_size=(224, 224), patch_size=16, width=64, depth=4,
                         heads=2, classes=10, preprocess=Preprocess(short_side=256))
    prune = PruneConfig.from_ratio(0.7, (1, 2, 3))
    model = DynamicViT(config, prune).eval()
    # The outputs of a freshly initialised model hardly depend on the image.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    export_model(model, ArtifactFacts(config, prune), reference.folder / "photos.onnx", ExportConfig(with_tokens=True))
    images = np.stack([resize_and_crop(Image.open(file), config) for file in files])
    reference.model("photos.onnx", [str(file) for file in files], images)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def deep_png(pixels) -> bytes:
    """A PNG with 16 bits per channel, which Pillow cannot write, of uint16 [height, width, 3]."""
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
            + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b""))


def add_files(reference: Reference) -> list[Path]:
    """Smooth colourful images in every supported format, and photos where available; returns the photo-like ones."""
    import numpy as np
    from PIL import Image, PngImagePlugin

    clouds = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    picture = Image.fromarray(clouds, "RGBA").resize((331, 250), Image.Resampling.BICUBIC)
    plain, folder = picture.convert("RGB"), reference.folder
    plain.save(folder / "plain.jpg", quality=90)
    plain.resize((250, 333)).save(folder / "progressive.jpg", progressive=True, quality=80)
    plain.convert("L").save(folder / "gray.jpg")
    plain.convert("CMYK").save(folder / "cmyk.jpg")
    picture.save(folder / "alpha.png")
    plain.convert("L").save(folder / "gray.png")
    plain.quantize(64).save(folder / "palette.png")
    # Pillow ignores a gamma; 100000 stands for 1.
    gamma = PngImagePlugin.PngInfo()
    gamma.add(b"gAMA", (100_000).to_bytes(4, "big"))
    plain.save(folder / "gamma.png", pnginfo=gamma)
    deep = np.asarray(plain).astype(np.uint16) * 256 + 200
    Image.fromarray(deep[..., 0]).save(folder / "deep-gray.png")
    Image.fromarray(deep[..., 0] >> 4).save(folder / "dim.png")
    (folder / "deep.png").write_bytes(deep_png(deep))
    content = (folder / "plain.jpg").read_bytes()
    # Superfluous bytes are harmless.
    (folder / "more.jpg").write_bytes(content[:-2] + b"\0\0" + content[-2:])
    (folder / "behind.jpg").write_bytes(content + b"\0behind the end\xff")
    thumbnail = b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
    (folder / "thumbnail.jpg").write_bytes(content[:2] + thumbnail + content[2:])
    (folder / "cut.jpg").write_bytes(content[:len(content) // 2])
    (folder / "cut.png").write_bytes((folder / "alpha.png").read_bytes()[:3000])
    # Height and width in the frame header, 16 bits each.
    sides = content.index(b"\xff\xc0") + 5
    (folder / "huge.jpg").write_bytes(content[:sides] + b"\xff\xdc" * 2 + content[sides + 4:])
    Image.new("1", (12_000, 9_000)).save(folder / "huge.png")
    for name in ("plain.jpg", "progressive.jpg", "gray.jpg", "more.jpg",
                 "behind.jpg", "thumbnail.jpg", "alpha.png", "gray.png", "palette.png", "gamma.png", "deep-gray.png",
                 "deep.png"):
        reference.decoded(folder / name)
    photos = sorted(PHOTOS.glob("*.jpg")) if PHOTOS.is_dir() else []
    for photo in photos:
        reference.decoded(photo)
    likely = photos or [folder / "plain.jpg", folder / "progressive.jpg"]
    # The last two sizes pad, by an odd number of pixels.
    for file in (likely[0], folder / "progressive.jpg"):
        for size, *steps in (
                ((224, 224), 256, "bicubic"), ((224, 224), 249, "bilinear"), ((96, 160), None, "bicubic"),
                ((96, 160), None, "bilinear"), ((224, 224), 256, "bicubic", True),
                ((96, 160), 109, "bicubic", False, 182), ((160, 96), 109, "bilinear", False, 182),
                ((96, 160), 109, "bicubic", True, 182), ((225, 225), 200, "bicubic"), ((64, 391), 90, "bilinear")):
            reference.resized(file, size, *steps)
    return likely


def exif(value: int, kind: int = 3, big: bool = False, tag: int = 274, offset: int = 8) -> bytes:
    """An EXIF block with one number of 16 (`kind` 3) or 32 bits (4); by default the orientation."""
    order = ">" if big else "<"
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{order}I", offset) + bytes(offset - 8)
    return head + struct.pack(f"{order}HHHI{'I' if kind == 4 else 'H2x'}4x", 1, tag, kind, 1, value)


def add_oriented_files(reference: Reference) -> None:
    """Every EXIF orientation in JPEG and PNG files, and blocks that are unusual or damaged."""
    import numpy as np
    from PIL import Image

    clouds = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    picture, folder = Image.fromarray(clouds).resize((61, 40), Image.Resampling.BICUBIC), reference.folder
    blocks = {f"orientation{value}": exif(value, big=value % 2 == 0) for value in range(1, 9)} | {
        "wide": exif(6, kind=4), "wide-big": exif(7, kind=4, big=True), "far": exif(8, offset=200),
        "other-tag": exif(6, tag=275), "rational": exif(6, kind=5), "nine": exif(9), "cut-exif": exif(6)[:15],
        "outside": exif(6)[:4] + b"\xff\xff\xff\x7f", "no-tiff": b"XX" + exif(6)[2:],
        "many": exif(6)[:8] + b"\xff\xff" + exif(6)[10:], "marked": b"Exif\0\0" + exif(6), "empty": b""}
    for name, block in blocks.items():
        for suffix in ("jpg", "png"):
            file = folder / f"{name}.{suffix}"
            picture.save(file, exif=b"Exif\0\0" + block)
            reference.decoded(file, "oriented")
    reference.decoded(folder / "orientation6.jpg")
    reference.decoded(folder / "orientation6.png")
    # The chunk behind the pixels.
    content = (folder / "empty.png").read_bytes()
    (folder / "late.png").write_bytes(content[:-12] + png_chunk(b"eXIf", exif(5)) + content[-12:])
    reference.decoded(folder / "late.png", "oriented")
    # The block in two segments.
    content, block = (folder / "empty.jpg").read_bytes(), exif(3)
    segments = [b"\xff\xe1" + struct.pack(">H", 8 + len(part)) + b"Exif\0\0" + part
                for part in (block[:12], block[12:])]
    (folder / "split.jpg").write_bytes(content[:2] + b"".join(segments) + content[2:])
    reference.decoded(folder / "split.jpg", "oriented")
    with Image.open(folder / "scene0.png") as scene:
        scene.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=b"Exif\0\0" + exif(6))


def add_plan(reference: Reference) -> None:
    """An engine of TensorRT for RTX, which builds without a GPU, if the library is installed."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return
    from dyvit_deploy.engine.build import build_engine

    build_engine(reference.folder / "digits-float32.onnx", reference.folder / "engine.plan", "rtx")
    reference.manifest["plan"] = "engine.plan"


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    skip_unless_importable()
    if is_fresh(folder / "manifest.json"):
        return
    folder.mkdir(parents=True, exist_ok=True)
    reference = Reference(folder)
    add_digits(reference)
    add_photo_model(reference, add_files(reference))
    add_oriented_files(reference)
    add_plan(reference)
    (folder / "manifest.json").write_text(json.dumps(reference.manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
