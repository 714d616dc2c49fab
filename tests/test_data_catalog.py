from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cs_models.errors import UserError
from datamodules.catalog import CATALOG, ImageFile, ImageSet, find_images, fingerprint, load_set, resolve_data_dir
from datamodules.images import luminance, read_image


def make_set(folder: Path, names: list[str], size: tuple[int, int] = (20, 30)) -> None:
    folder.mkdir(parents=True)
    random = np.random.RandomState(len(names))
    for name in names:
        Image.fromarray(random.randint(0, 256, (*size, 3)).astype(np.uint8)).save(folder / name)


def test_bundled_sets_are_disjoint_and_readable_without_any_data(tmp_path: Path) -> None:
    held_out, train = find_images("bundled", tmp_path), find_images("bundled-train", tmp_path)
    assert len(held_out) >= 3
    assert not {file.path for file in held_out} & {file.path for file in train}
    assert all(file.read().shape == (256, 256) for file in held_out)
    assert all(file.read().ndim == 2 for file in train)


def test_items_are_names_and_tensors_in_the_unit_interval(tmp_path: Path) -> None:
    make_set(tmp_path / "Set11", ["b.png", "a.png"])
    images = load_set("Set11", tmp_path)
    assert [name for name, _ in images] == ["a", "b"]
    _, image = images[0]
    assert image.dtype == torch.float32
    assert np.array_equal(image.numpy(), luminance(read_image(tmp_path / "Set11/a.png", "rgb"))[None] / np.float32(255))
    _, colour = load_set("Set11", tmp_path, channels="rgb")[-1]
    expected = read_image(tmp_path / "Set11/b.png", "rgb").transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(colour.numpy(), expected)


def test_limit_and_slices_keep_name_order(tmp_path: Path) -> None:
    make_set(tmp_path / "mine", [f"{index}.png" for index in range(5)])
    assert [name for name, _ in load_set("mine", tmp_path, limit=2)] == ["0", "1"]
    assert [name for name, _ in load_set("mine", tmp_path)[1::2]] == ["1", "3"]
    with pytest.raises(IndexError):
        load_set("mine", tmp_path)[5]
    with pytest.raises(UserError, match="limit"):
        load_set("mine", tmp_path, limit=0)


def test_images_are_read_only_when_asked_for(tmp_path: Path) -> None:
    make_set(tmp_path / "mine", ["good.png"])
    (tmp_path / "mine/bad.png").write_bytes(b"nothing")
    images = load_set("mine", tmp_path)
    assert images[1][0] == "good"
    with pytest.raises(UserError, match=r"bad\.png"):
        images[0]


def test_files_that_share_a_stem_keep_different_names(tmp_path: Path) -> None:
    make_set(tmp_path / "mine", ["x.png", "x.bmp", "y.png"])
    assert [name for name, _ in load_set("mine", tmp_path)] == ["x.bmp", "x.png", "y"]


def test_a_path_is_a_set_too(tmp_path: Path) -> None:
    make_set(tmp_path / "anywhere" / "holiday", ["1.png"])
    images = load_set(str(tmp_path / "anywhere" / "holiday"), "no such data dir")
    assert (images.set_name, len(images)) == ("holiday", 1)


def test_centre_crops_are_made_where_their_folder_is_absent(tmp_path: Path) -> None:
    make_set(tmp_path / "Urban100", ["a.png"], size=(301, 400))
    whole = read_image(tmp_path / "Urban100/a.png")
    assert np.array_equal(find_images("Urban100-256", tmp_path)[0].read(), whole[22:278, 72:328])
    make_set(tmp_path / "Urban100-256", ["b.png"], size=(256, 256))
    assert [file.name for file in find_images("Urban100-256", tmp_path)] == ["b"]


def test_crop_of_too_small_an_image_is_one_line(tmp_path: Path) -> None:
    make_set(tmp_path / "DIV2K", ["tiny.png"], size=(255, 400))
    with pytest.raises(UserError, match=r"tiny\.png.*255x400"):
        find_images("DIV2K-256", tmp_path)[0].read()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Set1", "unknown dataset 'Set1'; did you mean 'Set11'"),
        ("urban100", "did you mean 'Urban100'"),
        ("holidy", "did you mean 'holiday'"),
        ("", "unknown dataset ''"),
        ("Set11", "no folder.*Set11.*--data_dir.*datamodules.download Set11"),
        ("DIV2K-256", "no folder .*DIV2K' for dataset DIV2K-256.*download DIV2K"),
        ("T91", "unpack"),
        ("holiday", "no images in"),
    ],
)
def test_wrong_names_are_one_helpful_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "holiday").mkdir()
    with pytest.raises(UserError, match=message) as raised:
        load_set(name, tmp_path)
    assert "\n" not in str(raised.value)


def test_data_dir_is_the_argument_then_the_environment_then_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CS_DATA", "/from/environment")
    assert resolve_data_dir("given") == Path("given")
    assert resolve_data_dir() == Path("/from/environment")
    monkeypatch.delenv("CS_DATA")
    assert resolve_data_dir() == Path("data")


@pytest.mark.parametrize("image_set", CATALOG.values(), ids=lambda image_set: image_set.name)
def test_every_set_says_where_it_comes_from(image_set: ImageSet) -> None:
    ways = [image_set.archives, image_set.by_hand, image_set.derived_from, image_set.bundled]
    assert sum(bool(way) for way in ways) == 1
    assert image_set.summary
    assert image_set.citation
    if image_set.derived_from:
        assert image_set.derived_from in CATALOG
        assert image_set.centre_crop


def test_fingerprint_depends_on_pixels_alone(tmp_path: Path) -> None:
    make_set(tmp_path / "a", ["1.png", "2.png"])
    (tmp_path / "b").mkdir()
    for old, new in (("1.png", "z.bmp"), ("2.png", "c.tif")):
        Image.open(tmp_path / "a" / old).save(tmp_path / "b" / new)
    whole = fingerprint(find_images("a", tmp_path))
    assert fingerprint(find_images("b", tmp_path)) == whole
    files = find_images("a", tmp_path)
    assert fingerprint([files[0], ImageFile("crop", files[1].path, centre_crop=20)]) != whole
    assert fingerprint(files[:1]) != whole


@pytest.mark.parametrize("name", ["Set11", "CBSD68", "BrainMRI", "T91"])
def test_fingerprints_of_the_benchmark_images(real_data: Path, name: str) -> None:
    if not (real_data / name).is_dir():
        pytest.skip(f"no {name} in {real_data}")
    assert fingerprint(find_images(name, real_data)) == CATALOG[name].fingerprint
