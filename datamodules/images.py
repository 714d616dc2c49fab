"""Reading and writing image files: every format that Pillow reads, as uint8 luminance or RGB."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from cs_models.errors import UserError, first_line, nearest

Channels = Literal["luminance", "rgb"]


def list_images(folder: str | Path) -> list[Path]:
    """The image files directly inside a folder, sorted by name; hidden and other files are passed over.

    Raises:
        UserError: where the folder does not exist, cannot be read or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no image folder '{folder}'{_nearest_in(folder.parent, folder.name)}")
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read the image folder '{folder}': {error.strerror}") from error
    images = [path for path in entries if is_image_name(path.name) and path.is_file()]
    if not images:
        folders = [path.name for path in entries if path.is_dir()]
        hint = f"; it holds the folders {', '.join(folders[:5])}" if folders else ""
        raise UserError(f"no images in '{folder}'{hint}")
    return images


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image that Pillow reads; hidden files are not."""
    formats = Image.registered_extensions()  # also loads the plugins, which fill Image.OPEN
    return not name.startswith(".") and formats.get(PurePath(name).suffix.lower()) in Image.OPEN


def _nearest_in(folder: Path, name: str) -> str:
    """Ending of an error message about a name that is not in a folder; long lists of names help nobody."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    hint = nearest(name, names) if names else ""
    return hint if len(names) <= 10 or "did you mean" in hint else ""


def read_image(path: str | Path, channels: Channels = "luminance") -> npt.NDArray[np.uint8]:
    """Read any image that Pillow reads as uint8.

    Palettes are resolved, CMYK and the like become RGB, an alpha channel is dropped (not composited), 16-bit
    grey is scaled to 8 bits with rounding, 1-bit becomes 0 and 255, and EXIF orientation is applied. Of a file
    with several frames the first is read.

    Args:
        path: the file.
        channels: ``"luminance"``, see `luminance`; ``"rgb"`` repeats a grey image three times.

    Returns:
        ``(H, W)`` for luminance, ``(H, W, 3)`` for RGB.

    Raises:
        UserError: where the file is missing, unreadable, truncated or of a kind without a fixed range (float).
    """
    if channels not in get_args(Channels):
        raise UserError(f"unknown channels '{channels}'{nearest(str(channels), get_args(Channels))}")
    path = Path(path)
    try:
        with Image.open(path) as file:
            pixels = _to_uint8(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise UserError(f"no image '{path}'{_nearest_in(path.parent, path.name)}") from None
    except UserError as error:
        raise UserError(f"image '{path}': {error}") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, EOFError and others
        reason = first_line(error)
        raise UserError(f"cannot read image '{path}': {reason}") from error
    if channels == "luminance":
        return luminance(pixels)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _to_uint8(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Pixels ``(H, W)`` of a grey image or ``(H, W, 3)`` of any other."""
    if image.mode == "L":
        return np.asarray(image)
    if image.mode in ("1", "LA", "La"):
        return np.asarray(image.convert("L") if image.mode == "1" else image.getchannel(0))
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise UserError("integers outside 0..65535; save it with 8 or 16 bits")
        return ((wide + 128) // 257).astype(np.uint8)
    if image.mode == "F":
        raise UserError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    if image.mode == "RGBA":
        return np.asarray(image)[..., :3].copy()
    if image.mode in ("PA", "P") and "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))[..., :3].copy()
    return np.asarray(image.convert("RGB"))


def luminance(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Y of BT.601, full range, in the fixed-point arithmetic of OpenCV's ``COLOR_BGR2YCrCb``.

    The weights add up to 2^14, so an image with three equal channels gives back its grey values.

    Args:
        pixels: ``(H, W)``, returned as it is, or ``(H, W, 3)`` in the order red, green, blue.
    """
    if pixels.ndim == 2:
        return pixels
    weights = np.array([4899, 9617, 1868], dtype=np.int32)
    return ((pixels.astype(np.int32) @ weights + 8192) >> 14).astype(np.uint8)


def write_png(path: str | Path, image: npt.NDArray[np.floating]) -> None:
    """Write an image in [0, 1] as an 8-bit PNG; values outside are clipped.

    Args:
        path: the file to write.
        image: ``(H, W)`` or ``(H, W, 3)``.

    Raises:
        UserError: where the file cannot be written.
    """
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    partial = Path(f"{path}.partial")
    try:
        Image.fromarray(pixels).save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error
