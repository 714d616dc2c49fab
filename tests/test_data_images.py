from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cs_models.errors import UserError
from datamodules.images import list_images, luminance, read_image, write_png


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


def test_benchmark_palette_files_are_grey(real_data: Path) -> None:
    for name in ("Parrots.tif", "foreman.tif"):
        rgb = read_image(real_data / "Set11" / name, "rgb")
        assert np.array_equal(rgb[..., 0], rgb[..., 2])
        assert np.array_equal(read_image(real_data / "Set11" / name), rgb[..., 1])
