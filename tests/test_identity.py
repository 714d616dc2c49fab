"""An input is its content and its path: what has one name, or one file name, is not mixed up."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cs_models.cli.evaluate import main
from cs_models.errors import UserError
from cs_models.evaluation.pictures import Pictures, distinct_slugs
from cs_models.evaluation.report.merge import merge
from cs_models.evaluation.report.summary import summarise, with_sets_told_apart
from cs_models.evaluation.results import ResultsFile
from datamodules.catalog import find_images
from tests.test_platforms import ROW

WORDS = ["--methods", "pinv", "--ratios", "0.3", "--device", "cpu"]


def folder_of_images(folder: Path, grey: int, names: tuple[str, ...] = ("p",)) -> str:
    folder.mkdir(parents=True)
    for index, name in enumerate(names):
        pixels = np.full((16, 16), grey, np.uint8)
        pixels[index] = 255
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return str(folder)


def summaries(out: Path) -> dict[str, float]:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return {line["dataset"]: float(line["psnr_db"]) for line in csv.DictReader(file)}


@pytest.mark.parametrize("case", ["other images in one command", "the same images one after the other"])
def test_folders_of_one_name_are_two_sets(case: str, tmp_path: Path) -> None:
    same = case.startswith("the same")
    folders = [folder_of_images(tmp_path / "a/x", 20), folder_of_images(tmp_path / "b/x", 20 if same else 200)]
    out = tmp_path / "out"
    for datasets in folders if same else [",".join(folders)]:
        assert main([*WORDS, "--datasets", datasets, "--out", str(out)]) == 0
    assert summaries(out).keys() == {"x (a/x)", "x (b/x)"}
    rows = ResultsFile(out).rows()
    pictures = [Pictures.of_row(out, row) for row in with_sets_told_apart(rows)]
    assert len({picture.original.parent for picture in pictures}) == 2
    assert all(picture.exist() for picture in pictures)
    # Nothing is computed twice, and a folder that has grown is still the same set.
    folder_of_images(tmp_path / "a/x/more", 7, ("q",))
    (tmp_path / "a/x/more/q.png").rename(tmp_path / "a/x/q.png")
    assert main([*WORDS, "--datasets", folders[0], "--out", str(out)]) == 0
    assert [row.image for row in ResultsFile(out).rows()] == ["p", "p", "q"]
    assert len(summaries(out)) == 2


def test_a_merged_report_tells_them_apart_too(tmp_path: Path) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    for index, out in enumerate(outs):
        folder = folder_of_images(tmp_path / str(index) / "x", 20 + index)
        assert main([*WORDS, "--datasets", folder, "--out", str(out)]) == 0
    merge(outs, tmp_path / "both")
    assert summaries(tmp_path / "both").keys() == {"x (0/x)", "x (1/x)"}
    assert len(list((tmp_path / "both/images").rglob("original_*.png"))) == 2


def test_names_say_what_sets_differ_in() -> None:
    origins = ["", "/m/a/x", "/m/b/x", "/n/b/x", "C:\\b\\x", "/x"]
    rows = [replace(ROW, dataset="x", origin=origin, run_key=origin) for origin in origins]
    assert [row.dataset for row in with_sets_told_apart(rows)] == [
        "x", "x (a/x)", "x (m/b/x)", "x (n/b/x)", "x (C:/b/x)", "x (/x)",
    ]  # fmt: skip
    assert [one.dataset for one in summarise(rows[1:2])] == ["x"]


@pytest.mark.parametrize(
    "names",
    [("a/b", "a_b"), ("a b", "a_b", "a:b"), ("T", "t"), ("con", "_con"), ("a.", "a")],
    ids=["slash", "blanks", "capitals", "device", "dot"],
)
def test_columns_whose_files_would_have_one_name(names: tuple[str, ...], tmp_path: Path) -> None:
    samples = np.random.RandomState(0).rand(16, len(names)).round(3)
    lines = [",".join(names), *(",".join(map(str, sample)) for sample in samples)]
    (tmp_path / "log.csv").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "out"
    assert main([*WORDS, "--datasets", str(tmp_path / "log.csv"), "--save_images", "--out", str(out)]) == 0
    pictures = [Pictures.of_row(out, row) for row in ResultsFile(out).rows()]
    folders = {str(picture.original.parent).casefold() for picture in pictures}
    assert len(folders) == len(names)
    for picture, signal in zip(pictures, samples.T, strict=True):
        expected = (signal - signal.min()) / (signal.max() - signal.min())
        np.testing.assert_allclose(np.load(picture.original), expected, atol=1e-6)


def test_images_whose_names_differ_in_what_is_replaced(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "x", 20, ("a b", "a_b", "a,b"))
    out = tmp_path / "out"
    assert main([*WORDS, "--datasets", folder, "--save_images", "--out", str(out)]) == 0
    originals = {Pictures.of_row(out, row).original for row in ResultsFile(out).rows()}
    assert len({original.read_bytes() for original in originals}) == 3


def test_texts_that_would_be_one_file_name_get_a_digest() -> None:
    names = distinct_slugs(["a/b", "a_b", "A_B", "tv", "tv:iterations=3"])
    assert names["tv"] == "tv"
    assert names["tv:iterations=3"] == "tv_iterations=3"
    assert len({name.casefold() for name in names.values()}) == 5


def test_images_of_one_stem_go_by_their_whole_names(tmp_path: Path) -> None:
    folder = Path(folder_of_images(tmp_path / "x", 20, ("a", "b")))
    (folder / "a.jpg").write_bytes((folder / "b.png").read_bytes())
    assert [file.name for file in find_images(str(folder))] == ["a.jpg", "a.png", "b"]
    (folder / "a.png.tif").write_bytes((folder / "b.png").read_bytes())  # whose stem is another's whole name
    assert [file.name for file in find_images(str(folder))] == ["a.jpg", "a.png", "a.png.tif", "b.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_images_that_tables_could_not_tell_apart_are_refused(tmp_path: Path) -> None:
    folder = Path(folder_of_images(tmp_path / "x", 20, (r"caf\xe9", "p")))
    (folder / "p.png").rename(folder / b"caf\xe9.png".decode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="2 images that would be called"):
        find_images(str(folder))
