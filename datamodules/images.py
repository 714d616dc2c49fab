"""Reading and writing image files: the formats of `FORMATS`, as uint8 luminance or RGB."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path, PurePath
from threading import Lock
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from cs_models.errors import UserError, first_line, nearest
from cs_models.files import is_folder, replacing
from cs_models.host_memory import check_memory

logger = logging.getLogger(__name__)

Channels = Literal["luminance", "rgb"]

# What Pillow may try, by its own names. Left to itself it tries every format that it knows on every file, and runs
# Ghostscript on one that is PostScript inside, whatever the file's name.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
_FORMATS_IN_WORDS = "PNG, JPEG, TIFF, BMP, GIF, WebP, PPM or JPEG 2000"


class _Levels(NamedTuple):
    """What the numbers of a grey image of more than 8 bits mean: 0 to `full`, which is black where `inverted`."""

    full: int = 65535
    inverted: bool = False


def list_images(folder: str | Path) -> list[Path]:
    """The image files directly inside a folder, sorted by name; hidden and other files are passed over.

    Raises:
        UserError: where the folder does not exist, cannot be read or holds no image.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise UserError(f"no image folder '{folder}'{_nearest_in(folder.parent, folder.name)}")
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read the image folder '{folder}': {error.strerror}") from error
    names = [path for path in entries if path.is_file() and not path.name.startswith(".")]
    images = [path for path in names if is_image_name(path.name)]
    others = [path.name for path in names if _format_of(path.name) in Image.OPEN and not is_image_name(path.name)]
    if images and others:
        logger.warning("%s: passed over %s, which is not %s", folder, ", ".join(others[:5]), _FORMATS_IN_WORDS)
    if not images:
        folders = [path.name for path in entries if path.is_dir()]
        hint = f"; it holds the folders {', '.join(folders[:5])}" if folders else ""
        hint += f"; {', '.join(others[:5])} is not {_FORMATS_IN_WORDS}" if others else ""
        raise UserError(f"no images in '{folder}'{hint}")
    return images


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image of one of `FORMATS`; hidden files are not."""
    return not name.startswith(".") and _format_of(name) in FORMATS


def _format_of(name: str) -> str | None:
    """Pillow's name for the format that a file's suffix stands for."""
    return Image.registered_extensions().get(PurePath(name).suffix.lower())


def _nearest_in(folder: Path, name: str) -> str:
    """Ending of an error message about a name that is not in a folder; long lists of names help nobody."""
    names = [path.name for path in folder.iterdir()] if is_folder(folder) else []
    hint = nearest(name, names) if names else ""
    return hint if len(names) <= 10 or "did you mean" in hint else ""


def open_image(path: str | Path) -> Image.Image:
    """Open an image of one of `FORMATS`; its pixels are decoded when they are asked for.

    Raises:
        UserError: where the file is missing or unreadable, of another format, has no pixels, or would not fit into
            memory.
    """
    path = Path(path)
    try:
        with _NO_WARNINGS:
            image = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise UserError(f"no image '{path}'{_nearest_in(path.parent, path.name)}") from None
    except UnidentifiedImageError:
        raise UserError(
            f"cannot read image '{path}': it is not a readable {_FORMATS_IN_WORDS} file; convert it to PNG"
        ) from None
    except Image.DecompressionBombError:
        raise UserError(f"cannot read image '{path}': it has over 178 megapixels; cut it into several") from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, EOFError and others
        raise UserError(f"cannot read image '{path}': {first_line(error)}") from error
    if not min(image.size):
        image.close()
        raise UserError(f"cannot read image '{path}': it has no pixels")
    return image


class _NoWarnings:
    """Context without warnings, for several threads: `warnings.catch_warnings` in each would leave them off for good.

    Pillow warns of damage before it refuses a file, of metadata, and of each image beyond 89 megapixels. Here a
    refusal is one line, metadata do not count, and `open_image` weighs images against the memory there is.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._filters = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters.enter_context(warnings.catch_warnings(action="ignore"))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.close()


_NO_WARNINGS = _NoWarnings()


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width as `read_image` gives them, from the file's header alone.

    Raises:
        UserError: see `open_image`.
    """
    with open_image(path) as image:
        width, height = image.size
        upright = _orientation(image) < 5
    return (height, width) if upright else (width, height)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; from 5 on height and width change places."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata; decoding decides whether the image can be read
        return 1


def read_image(path: str | Path, channels: Channels = "luminance") -> npt.NDArray[np.uint8]:
    """Read an image of one of `FORMATS` as uint8.

    Palettes are resolved, CMYK and the like become RGB, an alpha channel is dropped (not composited), 12-bit and
    16-bit grey is scaled to 8 bits with rounding, of 16-bit colours Pillow keeps the upper 8 bits, 1-bit becomes 0
    and 255, and EXIF orientation is applied. Of a file with several frames the first is read.

    Args:
        path: the file.
        channels: ``"luminance"``, see `luminance`; ``"rgb"`` repeats a grey image three times.

    Returns:
        ``(H, W)`` for luminance, ``(H, W, 3)`` for RGB.

    Raises:
        UserError: as `open_image`, and where the file is truncated, does not fit into memory, or has pixels without
            a fixed range (signed or 32-bit integers, floats).
    """
    if channels not in get_args(Channels):
        raise UserError(f"unknown channels '{channels}'{nearest(str(channels), get_args(Channels))}")
    with open_image(path) as file:
        width, height = file.size
        # The decoded image, its orientation, the array and what the array is made from.
        check_memory(width * height * (8 if file.mode in ("1", "L") else 16), f"image '{path}' ({height}x{width})")
        try:
            with _NO_WARNINGS:
                levels = _levels(file)
                ImageOps.exif_transpose(file, in_place=True)
                pixels = _to_uint8(file, levels)
        except UserError as error:
            raise UserError(f"image '{path}': {error}") from None
        except Exception as error:  # as in `open_image`
            raise UserError(f"cannot read image '{path}': {first_line(error)}") from error
    if channels == "luminance":
        return luminance(pixels)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _levels(image: Image.Image) -> _Levels:
    """What a TIFF file's tags say of its numbers, which Pillow hands on as they are.

    Raises:
        UserError: for kinds of numbers that leave open which of them is white.
    """
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    if tags is None:
        return _Levels()
    bits = max(tags.get(258, (1,)))
    if 2 in tags.get(339, (1,)):
        raise UserError(f"signed {bits}-bit integers have no fixed range; save it as unsigned, with 8 or 16 bits")
    if image.mode == "I" and bits > 16:
        raise UserError(f"{bits}-bit integers have no fixed range; save it with 8 or 16 bits")
    return _Levels(2**bits - 1, inverted=tags.get(262) == 0)


def _to_uint8(image: Image.Image, levels: _Levels) -> npt.NDArray[np.uint8]:
    """Pixels ``(H, W)`` of a grey image or ``(H, W, 3)`` of any other."""
    if image.mode == "L":
        return np.asarray(image)
    if image.mode in ("1", "LA", "La"):
        return np.asarray(image.convert("L") if image.mode == "1" else image.getchannel(0))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _eight_bits(np.asarray(image), levels)
    if image.mode == "F":
        raise UserError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    if image.mode == "RGBA":
        return np.asarray(image)[..., :3].copy()
    if image.mode in ("PA", "P") and "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))[..., :3].copy()
    return np.asarray(image.convert("RGB"))


def _eight_bits(wide: npt.NDArray[np.integer], levels: _Levels) -> npt.NDArray[np.uint8]:
    """Grey values ``(H, W)`` of more than 8 bits, scaled to 0..255 and rounded."""
    if wide.min() < 0 or wide.max() > levels.full:
        raise UserError(f"integers outside 0..{levels.full}; save it with 8 or 16 bits")
    table = ((np.arange(levels.full + 1) * 255 + levels.full // 2) // levels.full).astype(np.uint8)
    if levels.inverted:
        table = table[::-1]
    return _in_strips(lambda strip: table[strip], wide)


def _in_strips(convert: Callable[[npt.NDArray], npt.NDArray[np.uint8]], pixels: npt.NDArray) -> npt.NDArray[np.uint8]:
    """Convert a megapixel at a time, so that wider numbers on the way take little memory."""
    rows = max(1, 2**20 // pixels.shape[1])
    return np.concatenate([convert(pixels[first : first + rows]) for first in range(0, len(pixels), rows)])


def luminance(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Y of BT.601, full range, in the fixed-point arithmetic of OpenCV's ``COLOR_BGR2YCrCb``.

    The weights add up to 2^14, so an image with three equal channels gives back its grey values.

    Args:
        pixels: ``(H, W)``, returned as it is, or ``(H, W, 3)`` in the order red, green, blue.
    """
    if pixels.ndim == 2:
        return pixels
    weights = np.array([4899, 9617, 1868], dtype=np.int32)
    return _in_strips(lambda strip: ((strip.astype(np.int32) @ weights + 8192) >> 14).astype(np.uint8), pixels)


def write_png(path: str | Path, image: npt.NDArray[np.floating]) -> None:
    """Write an image in [0, 1] as an 8-bit PNG; values outside are clipped.

    Args:
        path: the file to write.
        image: ``(H, W)`` or ``(H, W, 3)``.

    Raises:
        UserError: where the file cannot be written.
    """
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    try:
        with replacing(path) as partial:
            Image.fromarray(pixels).save(partial, format="PNG")
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from error
