"""Triton Python model: converts encoded (JPEG, PNG, WebP) or raw images to the input of the model.

It runs inside a server without dyvit: `preprocess.py` beside it is a copy of dyvit's own file.
"""
from __future__ import annotations

import functools
import io
import json
import math
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from PIL import Image
from preprocess import normalise, resize_and_crop

# Other formats of Pillow are unsafe for untrusted files: they start programs (EPS) or hide their size (ICO).
FORMATS = ("JPEG", "PNG", "WEBP")


class TritonPythonModel:
    """Input `encoded` (bytes of one image file) or `raw` (uint8 RGB [height, width, 3] of any size) per image."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._spec = json.loads(parameters["spec"]["string_value"], object_hook=lambda d: SimpleNamespace(**d))
        # Threads help, because Pillow releases Python's lock while it decodes.
        self._pool = ThreadPoolExecutor(self._spec.threads)
        # All of them start now and work once, so that memory does not grow when load first needs the last one.
        ready = threading.Barrier(self._spec.threads)
        list(self._pool.map(lambda _: self._first(ready), range(self._spec.threads)))

    def execute(self, requests: list[Any]) -> list[Any]:
        # All requests are started first, so that they overlap.
        started = [self._start(request) for request in requests]
        return [self._finish(images) for images in started]

    def finalize(self) -> None:
        self._pool.shutdown()

    def _start(self, request: Any) -> list[Future[np.ndarray]]:
        encoded, raw = (triton.get_input_tensor_by_name(request, name) for name in ("encoded", "raw"))
        if (encoded is None) == (raw is None):
            return [self._pool.submit(_fail, "give either `encoded` or `raw`")]
        if raw is not None:
            return [self._pool.submit(self._image, functools.partial(Image.fromarray, pixels))
                    for pixels in raw.as_numpy()]
        return [self._pool.submit(self._image, functools.partial(Image.open, io.BytesIO(content), formats=FORMATS))
                for content in encoded.as_numpy().reshape(-1)]

    def _first(self, ready: threading.Barrier) -> None:
        """The first work of a thread, once all have started."""
        ready.wait()
        file = io.BytesIO()
        side = min(512, math.isqrt(self._spec.max_pixels))
        Image.new("RGB", (side, side)).save(file, "jpeg")
        self._image(functools.partial(Image.open, file, formats=FORMATS))

    def _image(self, read: Any) -> np.ndarray:
        """uint8 [height, width, 3] of the model's size."""
        image = read()
        if not image.width * image.height:
            raise ValueError("it has no pixels")
        # The size is known from the header, before the image is decoded.
        if image.width * image.height > self._spec.max_pixels:
            raise ValueError(f"it has {image.width} x {image.height} pixels, more than the {self._spec.max_pixels} "
                             "allowed")
        pixels: np.ndarray = resize_and_crop(image, self._spec)
        return pixels

    def _finish(self, images: list[Future[np.ndarray]]) -> Any:
        pixels = []
        for number, image in enumerate(images):
            try:
                pixels.append(image.result())
            # An exception that reaches Triton would fail all requests of the batch.
            except Exception as error:
                text = f"image {number} of the request cannot be read: {error}"
                return triton.InferenceResponse(error=triton.TritonError(text, triton.TritonError.INVALID_ARG))
        batch = np.stack(pixels)
        if self._spec.dtype != "uint8":
            batch = normalise(batch, self._spec.preprocess).astype(self._spec.dtype)
        return triton.InferenceResponse([triton.Tensor("images", batch)])


def _fail(reason: str) -> np.ndarray:
    raise ValueError(reason)
