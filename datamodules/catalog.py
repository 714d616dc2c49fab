"""The image sets that the framework knows by name, and how a name becomes images. Listing them needs no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from cs_models.errors import UserError, nearest
from cs_models.files import is_folder
from datamodules.images import Channels, image_size, list_images, read_image
from datamodules.names import distinct_names, origin_of, readable

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Archive:
    """A zip or tar file that holds images of a set.

    Attributes:
        url: where it is.
        folders: the folders inside it whose images make the set, without their sub-folders.
        checksum: ``"sha256:..."`` or ``"md5:..."`` of the file, as its publisher or another user of it states it;
            None where the server packs the archive anew for every download.
    """

    url: str
    folders: tuple[str, ...]
    checksum: str | None = None


@dataclass(frozen=True)
class ImageSet:
    """What is known about a set of images.

    Attributes:
        name: its name, and that of its folder under the data directory.
        summary: one line: how many images of which kind and size, and what the field uses them for.
        citation: where it was published.
        license: terms of use, as far as its publisher states them.
        archives: what `datamodules.download` fetches.
        by_hand: how to get the images where there is nothing to fetch.
        fingerprint: `fingerprint` of the images that this project's figures were computed on.
        derived_from: the set whose images are cropped where there is no folder of this name.
        centre_crop: side of the square that is cut from the middle of the images.
        bundled: names of the files inside the scikit-image package that make the set; needs no folder.
    """

    name: str
    summary: str
    citation: str
    license: str = "not stated; for research"
    archives: tuple[Archive, ...] = ()
    by_hand: str | None = None
    fingerprint: str | None = None
    derived_from: str | None = None
    centre_crop: int | None = None
    bundled: tuple[str, ...] = ()


def _github(repository: str, commit: str, folder: str) -> Archive:
    """A folder of a GitHub repository at a fixed commit."""
    top = f"{repository.split('/')[1]}-{commit}"
    return Archive(f"https://github.com/{repository}/archive/{commit}.zip", (f"{top}/{folder}",))


_SCIKIT_IMAGE = "van der Walt et al., scikit-image: image processing in Python, PeerJ 2014"
_BUNDLED_LICENSE = "free to use; scikit-image states the terms of each photograph"

_SETS = (
    ImageSet(
        name="bundled",
        summary="3 held-out photographs inside scikit-image (camera, cat, coffee), 256x256 centre crops; no download",
        citation=_SCIKIT_IMAGE,
        license=_BUNDLED_LICENSE,
        centre_crop=256,
        bundled=("camera.png", "chelsea.png", "coffee.png"),
    ),
    ImageSet(
        name="bundled-train",
        # Drawings (logo, phantom, colour wheel, ...) and pictures with hardly any structure (retina, deep field,
        # cell, clock) are left out; of the stereo pair one view is taken.
        summary="11 other photographs inside scikit-image, for a first training without a download",
        citation=_SCIKIT_IMAGE,
        license=_BUNDLED_LICENSE,
        bundled=(
            "astronaut.png",
            "brick.png",
            "coins.png",
            "grass.png",
            "gravel.png",
            "ihc.png",
            "moon.png",
            "motorcycle_left.png",
            "page.png",
            "rocket.jpg",
            "text.png",
        ),
    ),
    ImageSet(
        name="phantom",
        summary="the Shepp-Logan phantom inside scikit-image, 400x400, for tomography; no download",
        citation="Shepp, Logan, The Fourier reconstruction of a head section, IEEE Trans. Nuclear Science 1974",
        license=_BUNDLED_LICENSE,
        bundled=("phantom.png",),
    ),
    ImageSet(
        name="Set11",
        summary="11 grey images, 9 of 256x256 and 2 of 512x512: the benchmark of block compressed sensing",
        citation="Kulkarni et al., ReconNet: non-iterative reconstruction of images from CS measurements, CVPR 2016",
        archives=(_github("jianzhangcs/ISTA-Net-PyTorch", "329249c8e86cb786b47f84751e6048a44a625fed", "data/Set11"),),
        fingerprint="2a45fc9cff81b1dd28629157ea49bee42ee683cdde45f78ce7a6f685a4574c70",
    ),
    ImageSet(
        name="CBSD68",
        summary="68 colour photographs, 480x288 or 288x480: the crop that the ISTA-Net++, COAST and IDM papers use",
        citation="Martin et al., A database of human segmented natural images, ICCV 2001; Roth, Black, CVPR 2005",
        archives=(_github("jianzhangcs/COAST", "2526203c41dcce001237eacc8b1f35705d3a599b", "data/CBSD68"),),
        fingerprint="631263050e84e6d4f1c457a6862ed971e7f671163e09125bd58d764bea154bed",
    ),
    ImageSet(
        name="Urban100",
        summary="100 colour photographs of buildings, about 1024x768",
        citation="Huang et al., Single image super-resolution from transformed self-exemplars, CVPR 2015",
        archives=(
            Archive(
                "https://huggingface.co/datasets/eugenesiow/Urban100/resolve/main/data/Urban100_HR.tar.gz",
                ("Urban100_HR",),
                "md5:65d9d84a34b72c6f7ca1e26a12df1e4c",
            ),
        ),
    ),
    ImageSet(
        name="Urban100-256",
        summary="256x256 centre crops of Urban100, as in the IDM paper",
        citation="Chen et al., Invertible diffusion models for compressed sensing, TPAMI 2025",
        derived_from="Urban100",
        centre_crop=256,
    ),
    ImageSet(
        name="DIV2K",
        summary="100 validation photographs of DIV2K in full size, about 2040x1400, colour",
        citation="Agustsson, Timofte, NTIRE 2017 challenge on single image super-resolution, CVPRW 2017",
        license="academic research only",
        archives=(
            Archive(
                "https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_valid_HR.zip",
                ("DIV2K_valid_HR",),
                "sha256:20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc",
            ),
        ),
    ),
    ImageSet(
        name="DIV2K-256",
        summary="256x256 centre crops of the DIV2K validation photographs, as in the IDM paper",
        citation="Chen et al., Invertible diffusion models for compressed sensing, TPAMI 2025",
        license="academic research only",
        derived_from="DIV2K",
        centre_crop=256,
    ),
    ImageSet(
        name="DIV2K-train",
        summary="800 training photographs of DIV2K in full size, about 2040x1400, colour",
        citation="Agustsson, Timofte, NTIRE 2017 challenge on single image super-resolution, CVPRW 2017",
        license="academic research only",
        archives=(
            Archive(
                "https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip",
                ("DIV2K_train_HR",),
                "sha256:9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
            ),
        ),
    ),
    ImageSet(
        name="BrainMRI",
        summary="50 grey brain slices, 256x256: the MRI benchmark of ISTA-Net",
        citation="Zhang, Ghanem, ISTA-Net: interpretable optimization-inspired deep network, CVPR 2018",
        archives=(
            _github(
                "jianzhangcs/ISTA-Net-PyTorch", "90a49d17c3b95335031369d4971c046ee6b9e47e", "data/BrainImages_test"
            ),
        ),
        fingerprint="d3f341d959630f187b60cfc9481d45e91fa65b745e657e8c6cbe4be42caff55d",
    ),
    ImageSet(
        name="Train400",
        summary="400 grey photographs, 180x180, for training (ISTA-Net++)",
        citation="Chen, Pock, Trainable nonlinear reaction diffusion, TPAMI 2017",
        archives=(
            _github(
                "cszn/DnCNN",
                "ff758d996ee998732d2380b2db10f499e6b86e45",
                "TrainingCodes/DnCNN_TrainingCodes_v1.0/data/Train400",
            ),
        ),
        fingerprint="397cca0125896f685982bafe17294eefed62b7a9ce8149f3c1f1155bccf5c91a",
    ),
    ImageSet(
        name="T91",
        summary="91 small colour photographs for training (ReconNet, ISTA-Net, COAST)",
        citation="Yang et al., Image super-resolution via sparse representation, TIP 2010",
        by_hand="unpack the training images of http://www.ifp.illinois.edu/~jyang29/codes/ScSR.rar",
        fingerprint="a88ca7667cb305ce88e7aded6192936ea84d97d44b0c9a16827186b992caef4a",
    ),
    ImageSet(
        name="BSDS500",
        summary="400 colour photographs (its train and test parts), 481x321, for training (CSNet+)",
        citation="Arbelaez et al., Contour detection and hierarchical image segmentation, TPAMI 2011",
        archives=(
            Archive(
                "https://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz",
                ("BSR/BSDS500/data/images/train", "BSR/BSDS500/data/images/test"),
            ),
        ),
    ),
    ImageSet(
        name="WED",
        summary="4744 colour photographs of the Waterloo Exploration Database for training",
        citation="Ma et al., Waterloo Exploration Database: new challenges for image quality assessment, TIP 2017",
        by_hand=(
            "unpack the pristine images of "
            "https://ivc.uwaterloo.ca/database/WaterlooExploration/exploration_database_and_code.rar"
        ),
    ),
)

CATALOG: dict[str, ImageSet] = {image_set.name: image_set for image_set in _SETS}


@dataclass(frozen=True)
class ImageFile:
    """One image of a set; nothing is read before `read`.

    Attributes:
        name: its name inside the set.
        path: the file.
        centre_crop: side of the square to cut from the middle; None for the whole image.
    """

    name: str
    path: Path
    centre_crop: int | None = None

    def read(self, channels: Channels = "luminance") -> npt.NDArray[np.uint8]:
        """The pixels, ``(H, W)`` or ``(H, W, 3)``."""
        pixels = read_image(self.path, channels)
        if self.centre_crop is None:
            return pixels
        side = self.centre_crop
        height, width = pixels.shape[:2]
        self._check_crop(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return pixels[top : top + side, left : left + side]

    def size(self) -> tuple[int, int]:
        """Height and width of what `read` gives, from the header of the file alone."""
        height, width = image_size(self.path)
        if self.centre_crop is None:
            return height, width
        self._check_crop(height, width)
        return self.centre_crop, self.centre_crop

    def _check_crop(self, height: int, width: int) -> None:
        side = self.centre_crop
        if side is not None and min(height, width) < side:
            raise UserError(f"image '{self.path}' is {height}x{width}, too small for a {side}x{side} centre crop")


class BenchmarkImages(Sequence["tuple[str, Tensor]"]):
    """A set of images as pairs of name and float32 tensor ``(C, H, W)`` in [0, 1], each read when it is asked for.

    A slice is again a `BenchmarkImages`.

    Attributes:
        set_name: name of the set.
        files: its images.
        channels: ``"luminance"`` (C = 1) or ``"rgb"`` (C = 3).
        origin: the folder of a user's own set, see `datamodules.names.origin_of`; empty for sets of the catalogue.
    """

    def __init__(
        self, set_name: str, files: Sequence[ImageFile], channels: Channels = "luminance", origin: str = ""
    ) -> None:
        self.set_name = set_name
        self.origin = origin
        self.files = list(files)
        self.channels = channels

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> tuple[str, Tensor]: ...

    @overload
    def __getitem__(self, index: slice) -> BenchmarkImages: ...

    def __getitem__(self, index: int | slice) -> tuple[str, Tensor] | BenchmarkImages:
        if isinstance(index, slice):
            return BenchmarkImages(self.set_name, self.files[index], self.channels, self.origin)
        file = self.files[index]
        return file.name, image_tensor(file.read(self.channels))


def image_tensor(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 pixels ``(H, W)`` or ``(H, W, 3)`` as a float32 tensor ``(C, H, W)`` in [0, 1]."""
    import torch

    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32)) / 255


def resolve_data_dir(data_dir: str | Path | None = None) -> Path:
    """The folder that holds the image sets: the argument, else ``$CS_DATA``, else ``data/``."""
    return Path(data_dir or os.environ.get("CS_DATA") or "data")


def find_images(name: str, data_dir: str | Path | None = None) -> list[ImageFile]:
    """The images of a set, sorted by name, without reading them.

    Args:
        name: a name in `CATALOG`, the path of a folder, or the name of a folder under the data directory.
        data_dir: see `resolve_data_dir`.

    Raises:
        UserError: for an unknown name, and where a set's folder is missing or holds no image.
    """
    root = resolve_data_dir(data_dir)
    image_set = CATALOG.get(name)
    if image_set is None:
        for folder in (Path(name), root / name):
            if name and is_folder(folder):
                return _named(list_images(folder))
        raise UserError(f"unknown dataset '{name}'{nearest(name, [*CATALOG, *_folders(root)])}")
    if image_set.bundled:
        package = Path(str(files("skimage"))) / "data"
        return _named([package / file for file in image_set.bundled], image_set.centre_crop)
    if is_folder(root / name):
        return _named(list_images(root / name))
    source = image_set.derived_from or name
    if source != name and is_folder(root / source):
        return _named(list_images(root / source), image_set.centre_crop)
    how = CATALOG[source].by_hand or f"run: python -m datamodules.download {source}"
    folder = root / source
    raise UserError(
        f"no folder '{folder}' for dataset {name}; name the data directory with --data_dir "
        f"(--data.data_dir of train.py), or {how}"
    )


def _folders(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.is_dir()] if is_folder(root) else []


def _named(paths: Sequence[Path], centre_crop: int | None = None) -> list[ImageFile]:
    return [ImageFile(name, path, centre_crop) for name, path in zip(distinct_names(paths), paths, strict=True)]


def load_set(
    name: str, data_dir: str | Path | None = None, channels: Channels = "luminance", limit: int | None = None
) -> BenchmarkImages:
    """A benchmark set, read lazily.

    Args:
        name: see `find_images`.
        data_dir: see `resolve_data_dir`.
        channels: ``"luminance"`` or ``"rgb"``.
        limit: take the first images in name order, this many.

    Raises:
        UserError: as `find_images`; an unreadable image raises it when it is asked for.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1 image, got {limit}")
    images = find_images(name, data_dir)[:limit]
    if name in CATALOG:
        return BenchmarkImages(name, images, channels)
    folder = images[0].path.parent
    return BenchmarkImages(readable(folder.resolve().name), images, channels, origin_of(folder))


def fingerprint(images: Sequence[ImageFile]) -> str:
    """sha256 of the pixels of a set, whatever the names, formats and order of its files."""
    digests = []
    for file in images:
        pixels = file.read("rgb")
        height, width = pixels.shape[:2]
        digests.append(hashlib.sha256(f"{height}x{width}:".encode() + pixels.tobytes()).hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
