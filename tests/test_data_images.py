from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import EpsImagePlugin, Image

from cs_models import host_memory
from cs_models.errors import UserError
from datamodules.catalog import find_images
from datamodules.images import FORMATS, image_size, list_images, luminance, read_image, write_png


@pytest.fixture
def colours() -> npt.NDArray[np.uint8]:
    return np.random.RandomState(0).randint(0, 256, (6, 7, 3)).astype(np.uint8)


@pytest.fixture
def greys() -> npt.NDArray[np.uint8]:
    return np.arange(256, dtype=np.uint8).reshape(8, 32)


def save(folder: Path, pixels: npt.NDArray, name: str = "image.png", mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(pixels)
    path = folder / name
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("colour", "y"),
    [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29), ((255, 255, 255), 255), ((10, 200, 30), 124)],
)
def test_luminance_is_bt601_full_range_rounded(colour: tuple[int, int, int], y: int) -> None:
    assert luminance(np.array([[colour]], dtype=np.uint8)).item() == y


def test_luminance_is_within_half_a_grey_level_of_the_exact_weights(colours: npt.NDArray[np.uint8]) -> None:
    exact = colours @ np.array([0.299, 0.587, 0.114])
    assert np.abs(luminance(colours) - exact).max() <= 0.52  # the fixed-point weights add up to .02


def test_equal_channels_give_the_grey_values_back(greys: npt.NDArray[np.uint8]) -> None:
    assert np.array_equal(luminance(np.repeat(greys[..., None], 3, axis=2)), greys)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.pgm", "a.gif"])
def test_grey_files_are_read_exactly_in_both_ways(tmp_path: Path, greys: npt.NDArray[np.uint8], name: str) -> None:
    path = save(tmp_path, greys, name)
    assert np.array_equal(read_image(path), greys)
    assert np.array_equal(read_image(path, "rgb"), np.repeat(greys[..., None], 3, axis=2))


def test_palette_file_of_grey_values_is_read_exactly(tmp_path: Path, greys: npt.NDArray[np.uint8]) -> None:
    image = Image.fromarray(greys)
    image.putpalette([value for grey in reversed(range(256)) for value in (grey, grey, grey)])
    image.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), 255 - greys)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_files(tmp_path: Path, colours: npt.NDArray[np.uint8], mode: str) -> None:
    path = save(tmp_path, colours, mode=mode)
    assert np.array_equal(read_image(path, "rgb"), colours)
    assert np.array_equal(read_image(path), luminance(colours))


def test_alpha_is_dropped_not_composited(tmp_path: Path, colours: npt.NDArray[np.uint8]) -> None:
    transparent = np.concatenate([colours, np.zeros_like(colours[..., :1])], axis=2)
    assert np.array_equal(read_image(save(tmp_path, transparent), "rgb"), colours)


def test_grey_with_alpha(tmp_path: Path, greys: npt.NDArray[np.uint8]) -> None:
    path = save(tmp_path, np.stack([greys, greys // 2], axis=2))
    assert np.array_equal(read_image(path), greys)


def test_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "p.png", transparency=bytes([0, 255]))
    assert read_image(tmp_path / "p.png", "rgb").tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    red = np.full((16, 16, 3), (255, 0, 0), dtype=np.uint8)
    read = read_image(save(tmp_path, red, "a.tif", mode="CMYK"), "rgb")
    assert np.array_equal(read, red)


def test_sixteen_bits_are_scaled_to_eight_with_rounding(tmp_path: Path) -> None:
    wide = np.array([[0, 128, 129, 257, 32896, 65406, 65407, 65535]], dtype=np.uint16)
    assert read_image(save(tmp_path, wide)).tolist() == [[0, 0, 1, 1, 128, 254, 255, 255]]


def tiff(path: Path, data: bytes, width: int, order: str = "<", **tags: Sequence[int]) -> Path:
    """A TIFF file of one row of one sample a pixel, with the tags given by name."""
    numbers = {"bits": 258, "photometric": 262, "samples": 277, "planes": 284, "kind": 339, "fill": 266}
    entries = {256: [width], 257: [1], 259: [1], 273: [0], 278: [1], 279: [len(data)], 262: [1], 277: [1]}
    entries |= {numbers[name]: list(values) for name, values in tags.items()}
    entries[273] = [8 + 2 + 12 * len(entries) + 4]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, values in sorted(entries.items()):
        directory += struct.pack(f"{order}HHI", tag, 3, len(values)) + struct.pack(
            f"{order}{len(values)}H", *values
        ).ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    path.write_bytes(mark + struct.pack(f"{order}HI", 42, 8) + directory + bytes(4) + data)
    return path


def packed(values: Sequence[int], bits: int) -> bytes:
    """Samples of a number of bits, one after the other, the highest bit first, as TIFF packs them."""
    return int("".join(f"{value:0{bits}b}" for value in values), 2).to_bytes(len(values) * bits // 8, "big")


DEPTHS = [(bits, white_is_zero) for bits in (1, 2, 4, 8, 12, 16) for white_is_zero in (False, True)]


@pytest.mark.parametrize(("bits", "white_is_zero"), [depth for depth in DEPTHS if depth != (12, True)])
def test_tiff_of_every_depth_spans_black_to_white(tmp_path: Path, bits: int, white_is_zero: bool) -> None:
    full = 2**bits - 1
    values = [0, full, full // 2, full // 3, 1, full - 1, full, 0]
    data = np.array(values, "<u2").tobytes() if bits == 16 else packed(values, bits)
    path = tiff(tmp_path / "a.tif", data, len(values), bits=[bits], photometric=[0 if white_is_zero else 1])
    expected = np.rint(np.array(values) * 255 / full).astype(int)
    assert read_image(path).tolist() == [(255 - expected if white_is_zero else expected).tolist()]


@pytest.mark.parametrize(
    ("bits", "tags"),
    [
        ([12], {"photometric": [0]}),
        ([12], {"kind": [2]}),
        ([10], {}),
        ([12, 12, 12], {"photometric": [2], "samples": [3]}),  # of which Pillow warns
    ],
)
def test_a_depth_that_pillow_does_not_know_is_one_line(
    bits: list[int], tags: dict[str, list[int]], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tiff(tmp_path / "a.tif", packed([0, 1023, 0, 1], bits[0]), 4, bits=bits, **tags)
    with pytest.raises(UserError, match=r"a\.tif.*convert it to PNG"):
        read_image(path)
    assert not recwarn.list


def test_sixteen_bits_of_the_other_byte_order(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", np.array([0, 257, 65535], ">u2").tobytes(), 3, ">", bits=[16])
    assert read_image(path).tolist() == [[0, 1, 255]]


@pytest.mark.parametrize(
    ("bits", "kind", "message"),
    [
        (16, 2, "signed 16-bit"),
        (8, 2, "signed 8-bit"),
        (32, 2, "signed 32-bit"),
        (32, 1, "32-bit"),
        (32, 3, "floating"),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_numbers_without_a_fixed_range_are_refused_by_name(
    tmp_path: Path, bits: int, kind: int, message: str, order: str
) -> None:
    path = tiff(tmp_path / "a.tif", bytes(2 * bits // 8), 2, order, bits=[bits], kind=[kind])
    with pytest.raises(UserError, match=r"a\.tif.*" + f"({message}|convert it to PNG)") as raised:
        read_image(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("full", [1, 100, 255, 1023, 4095, 65535])
def test_portable_greymaps_are_scaled_by_their_own_white(tmp_path: Path, full: int) -> None:
    values = np.array([0, full, full // 2], ">u2" if full > 255 else "u1")
    (tmp_path / "a.pgm").write_bytes(f"P5 3 1 {full}\n".encode() + values.tobytes())
    assert np.abs(read_image(tmp_path / "a.pgm")[0] - values * 255.0 / full).max() <= 0.51


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    assert read_image(save(tmp_path, np.array([[0, 255, 0]], dtype=np.uint8), mode="1")).tolist() == [[0, 255, 0]]


def test_exif_orientation_is_applied(tmp_path: Path, greys: npt.NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    assert np.array_equal(read_image(save(tmp_path, greys, exif=exif)), np.rot90(greys, -1))


def test_float_pixels_are_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path, np.zeros((2, 2), dtype=np.float32), "depth.tif")
    with pytest.raises(UserError, match=r"depth\.tif.*floating"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_unreadable_file_is_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png") as raised:
        read_image(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.bmp", "cut.tif"])
def test_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=name):
        read_image(path)


def test_missing_file_suggests_the_nearest(tmp_path: Path, greys: npt.NDArray[np.uint8]) -> None:
    save(tmp_path, greys, "barbara.png")
    with pytest.raises(UserError, match=r"did you mean 'barbara.png'"):
        read_image(tmp_path / "barbra.png")


def test_unknown_channels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'luminance'"):
        read_image(tmp_path / "x.png", "luminence")  # type: ignore[arg-type]


def test_list_is_sorted_and_leaves_other_files_out(tmp_path: Path, greys: npt.NDArray[np.uint8]) -> None:
    for name in ("b.png", "a.TIF", "c.jpeg", ".hidden.png"):
        save(tmp_path, greys, name)
    (tmp_path / "README.md").write_text("text")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.TIF", "b.png", "c.jpeg"]


def test_misspelt_folder_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "Urban100").mkdir()
    with pytest.raises(UserError, match=r"Urbn100.*did you mean 'Urban100'"):
        list_images(tmp_path / "Urbn100")


def test_folder_without_images_is_named_with_its_folders(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"no images in .*holds the folders train"):
        list_images(tmp_path)


def test_png_round_trip_and_clipping(tmp_path: Path, colours: npt.NDArray[np.uint8]) -> None:
    write_png(tmp_path / "out.png", colours / 255)
    assert np.array_equal(read_image(tmp_path / "out.png", "rgb"), colours)
    write_png(tmp_path / "out.png", np.array([[-0.5, 0.5, 1.5]]))
    assert read_image(tmp_path / "out.png").tolist() == [[0, 128, 255]]


def test_png_into_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_png(tmp_path / "no" / "out.png", np.zeros((2, 2)))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.eps", "a"])
@pytest.mark.parametrize(
    "start", [b"", b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, 100, 0, 0, 0, 0) + b"\xff\xff"], ids=["plain", "dos"]
)
def test_postscript_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: bytes) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *words, **options: pytest.fail("Ghostscript was run"))
    (tmp_path / name).write_bytes(start + POSTSCRIPT)
    for read in (read_image, image_size):
        with pytest.raises(UserError, match=f"{name}.*PNG, JPEG, TIFF") as raised:
            read(tmp_path / name)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", ["tga", "pcx", "ico", "sgi", "dds"])
def test_other_formats_are_refused_under_any_name(tmp_path: Path, greys: npt.NDArray[np.uint8], suffix: str) -> None:
    path = save(tmp_path, greys, f"a.{suffix}", mode="RGB")
    path.rename(tmp_path / "a.png")
    with pytest.raises(UserError, match="convert it to PNG"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.bmp", "a.gif", "a.webp", "a.ppm", "a.jp2"])
def test_every_format_of_the_list_is_read_under_any_name(
    tmp_path: Path, greys: npt.NDArray[np.uint8], name: str
) -> None:
    lossless: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    path = save(tmp_path, greys, name, **lossless)
    assert len(list_images(tmp_path)) == 1
    path.rename(tmp_path / "other")
    assert np.abs(read_image(tmp_path / "other").astype(int) - greys).max() <= (6 if name == "a.jpg" else 0)


def test_the_list_is_what_pillow_calls_them() -> None:
    assert set(FORMATS) <= set(Image.registered_extensions().values())


def test_a_dataset_folder_says_what_it_passes_over(
    tmp_path: Path, greys: npt.NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/figure.eps").write_bytes(POSTSCRIPT)
    with pytest.raises(UserError, match=r"no images in .*figure\.eps is not PNG, JPEG"):
        find_images("set", tmp_path)
    save(tmp_path / "set", greys, "a.png")
    (tmp_path / "set/notes.txt").touch()
    with caplog.at_level(logging.WARNING):
        assert [image.name for image in find_images("set", tmp_path)] == ["a"]
    assert "passed over figure.eps, which" in caplog.text


def huge_png(path: Path, height: int, width: int, colour: int = 0) -> Path:
    """The beginning of a PNG file that states a size."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(99))),
    ]
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize(("colour", "need"), [(0, "1.2"), (2, "2.5"), (3, "2.5"), (6, "2.5")])
def test_an_image_larger_than_the_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colour: int, need: str, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(host_memory, "memory_available", lambda: 2**29)
    path = huge_png(tmp_path / "a.png", 13_000, 13_000, colour)
    with pytest.raises(
        UserError, match=rf"a\.png.*13000x13000.*needs about {need} GB of memory; there is about 0\.5 GB"
    ):
        read_image(path)


@pytest.mark.parametrize(("height", "width"), [(20_000, 20_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (0, 5)])
def test_an_impossible_size_is_one_line(tmp_path: Path, height: int, width: int) -> None:
    with pytest.raises(UserError, match=r"cannot read image '.*a\.png'") as raised:
        read_image(huge_png(tmp_path / "a.png", height, width))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_pixels(tmp_path: Path, greys: npt.NDArray[np.uint8], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, greys, exif=exif)
    assert image_size(path) == read_image(path).shape


def test_luminance_of_a_large_image_is_that_of_its_rows() -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (5, 2**19 + 3, 3)).astype(np.uint8)
    assert np.array_equal(luminance(pixels), np.stack([luminance(row[None])[0] for row in pixels]))


def test_benchmark_palette_files_are_grey(real_data: Path) -> None:
    for name in ("Parrots.tif", "foreman.tif"):
        rgb = read_image(real_data / "Set11" / name, "rgb")
        assert np.array_equal(rgb[..., 0], rgb[..., 2])
        assert np.array_equal(read_image(real_data / "Set11" / name), rgb[..., 1])


def test_threads_that_read_images_leave_warnings_as_they_were(tmp_path: Path, greys: npt.NDArray[np.uint8]) -> None:
    Image.fromarray(greys).save(tmp_path / "a.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(image_size, [tmp_path / "a.png"] * 400))
    assert list(warnings.filters) == before
