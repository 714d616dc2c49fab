"""Fetch an image set: ``python -m datamodules.download NAME [--data_dir DIR]``.

A download that breaks off is continued by the next run. The set's folder appears in one step at the very end, so a
folder that is there is complete.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import lzma
import posixpath
import re
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cs_models.errors import CommandParser, UserError, nearest, report
from cs_models.progress import Progress
from datamodules.catalog import CATALOG, Archive, find_images, fingerprint, resolve_data_dir
from datamodules.images import is_image_name, list_images

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60

# RuntimeError: zipfile's answer to an encrypted member.
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
)


def download_set(name: str, data_dir: str | Path | None = None) -> Path:
    """Fetch a set, unless its folder is there already.

    Args:
        name: a name in `datamodules.catalog.CATALOG`.
        data_dir: see `datamodules.catalog.resolve_data_dir`.

    Returns:
        The folder with the set's images.

    Raises:
        UserError: where the set is unknown or has no public address, the connection breaks, the server refuses, the
            checksum differs, the archive is damaged or hostile, or the disk is full. What was received is kept.
    """
    if name not in CATALOG:
        raise UserError(f"unknown dataset '{name}'{nearest(name, CATALOG)}")
    image_set = CATALOG[name]
    if image_set.bundled:
        raise UserError(f"{name} comes with scikit-image; there is nothing to download")
    if image_set.derived_from:
        raise UserError(f"{name} is cut from {image_set.derived_from}; download {image_set.derived_from}")
    folder = resolve_data_dir(data_dir) / name
    if folder.is_dir():
        return folder
    if not image_set.archives:
        raise UserError(f"{name} cannot be fetched: {image_set.by_hand}, and put them into '{folder}'")
    # Beside the target, so that the renaming at the end stays within one file system.
    staging = folder.with_name(f".{name}.download")
    images = staging / "images"
    with _disk(staging.parent):
        staging.mkdir(parents=True, exist_ok=True)
        files = [fetch(archive, staging) for archive in image_set.archives]
        shutil.rmtree(images, ignore_errors=True)
        images.mkdir()
        for archive, file in zip(image_set.archives, files, strict=True):
            extract(file, archive.folders, images)
        list_images(images)
        images.rename(folder)
        shutil.rmtree(staging)
    return folder


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turn failures of the file system into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"no space left on the disk of '{folder}'; make room and run again") from error
        raise UserError(f"cannot write '{error.filename or folder}': {error.strerror or error}") from error


@contextmanager
def _network(url: str) -> Iterator[None]:
    """Turn failures of the connection into one clear line."""
    try:
        yield
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"cannot download {url}: {reason}; what arrived is kept, run again to go on") from error


def fetch(archive: Archive, folder: Path) -> Path:
    """Download an archive, going on where an earlier attempt broke off, and verify it.

    Args:
        archive: what to fetch.
        folder: where the file goes, under the last part of its address.

    Returns:
        The complete file.

    Raises:
        UserError: where the connection breaks, the server refuses, or the checksum differs.
        OSError: where the file cannot be written.
    """
    file = folder / PurePosixPath(archive.url).name
    if not file.exists():
        part = file.with_name(file.name + ".part")
        _receive(archive.url, part)
        _verify(part, archive)
        part.rename(file)
    return file


def _receive(url: str, part: Path) -> None:
    """Append to `part` until it holds the whole file."""
    done = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    with _network(url):
        try:
            response = urlopen(request, timeout=_TIMEOUT_SECONDS)
        except HTTPError as error:
            if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not done:
                raise
            if _total(error.headers.get("Content-Range")) == done:
                return
            response = urlopen(url, timeout=_TIMEOUT_SECONDS)  # the part belongs to another version of the file
    with response:
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT
        if resumed and _first(response.headers.get("Content-Range")) != done:
            raise UserError(f"cannot download {url}: the server sent another range than asked for")
        if not resumed:  # a server without ranges sends the file from its start
            done = 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length is not None else None
        with (
            part.open("ab" if resumed else "wb") as output,
            Progress(total, part.stem, "bytes", done, large_numbers=True) as bar,
        ):
            while True:
                with _network(url):
                    chunk = response.read(_CHUNK)
                    if not chunk and total is not None and done < total:
                        raise ConnectionError(f"the connection broke off after {done} of {total} bytes")
                if not chunk:
                    break
                output.write(chunk)
                done += len(chunk)
                bar.update(len(chunk))


def _first(content_range: str | None) -> int | None:
    match = re.match(r"bytes (\d+)-", content_range or "")
    return int(match[1]) if match else None


def _total(content_range: str | None) -> int | None:
    match = re.match(r"bytes .*/(\d+)$", content_range or "")
    return int(match[1]) if match else None


def _verify(part: Path, archive: Archive) -> None:
    if archive.checksum is None:
        return
    algorithm, _, expected = archive.checksum.partition(":")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        part.unlink()
        raise UserError(f"{archive.url} has {algorithm} {found}, expected {expected}; removed, run again")


class _Member(NamedTuple):
    """What zip and tar archives have in common: one entry."""

    name: str
    size: int
    is_file: bool
    leads_to: str | None  # where a link points, from the top of the archive
    open: Callable[[], IO[bytes]]


def extract(file: Path, folders: Sequence[str], target: Path) -> None:
    """Copy the images that lie directly in some folders of an archive.

    Nothing else is ever written: no path of the archive, no link, no other kind of file.

    Args:
        file: a zip or tar archive, compressed or not. It is removed where it turns out to be damaged.
        folders: paths inside the archive.
        target: an existing folder, which takes the images without their paths.

    Raises:
        UserError: where the archive is damaged or lacks a folder, where any of its members, wanted or not, lies or
            points outside of it, and where the disk has no room for the images.
        OSError: where an image cannot be written.
    """
    try:
        with _members(file) as members:
            for member in members:
                _refuse_outside(file, member)
            wanted = _wanted(file, members, folders)
            needed, free = sum(member.size for member in wanted.values()), shutil.disk_usage(target).free
            if needed > free:
                raise UserError(f"no space left on the disk of '{target}': {needed} bytes needed, {free} free")
            with Progress(len(wanted), f"unpacking {file.name}", "images") as bar:
                for name, member in wanted.items():
                    with member.open() as source, (target / name).open("wb") as output:
                        shutil.copyfileobj(source, output, _CHUNK)
                    bar.update()
    except _DAMAGED as error:
        file.unlink()
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UserError(f"'{file.name}' is no archive or is damaged ({reason}); removed, run again") from error


@contextmanager
def _members(file: Path) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as zipped:
            yield [_zip_member(zipped, info) for info in zipped.infolist()]
    else:
        with tarfile.open(file) as tarred:
            members = [_tar_member(tarred, info) for info in tarred.getmembers()]
            _read_to_end(tarred)
            yield members


def _read_to_end(archive: tarfile.TarFile) -> None:
    """Let the decompressor check the sum behind the last member, which tarfile itself never reaches."""
    assert archive.fileobj is not None
    while archive.fileobj.read(_CHUNK):
        pass


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    leads_to = None
    if stat.S_ISLNK(info.external_attr >> 16):
        leads_to = posixpath.join(posixpath.dirname(info.filename), archive.read(info).decode(errors="replace"))
    is_file = leads_to is None and not info.is_dir()
    return _Member(info.filename, info.file_size, is_file, leads_to, partial(archive.open, info))


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    leads_to = None
    if info.issym():
        leads_to = posixpath.join(posixpath.dirname(info.name), info.linkname)
    elif info.islnk():
        leads_to = info.linkname
    # Of a regular file, and no other is opened, extractfile never gives None.
    return _Member(info.name, info.size, info.isreg(), leads_to, cast(Any, partial(archive.extractfile, info)))


def _refuse_outside(file: Path, member: _Member) -> None:
    for path in (member.name, posixpath.normpath(member.leads_to or "")):
        parsed = PureWindowsPath(path)  # splits at both kinds of slash, and knows drives
        if parsed.root or parsed.drive or ".." in parsed.parts:
            raise UserError(f"'{file.name}' is not safe: its member '{member.name}' leads outside of the archive")


def _wanted(file: Path, members: Sequence[_Member], folders: Sequence[str]) -> dict[str, _Member]:
    """The images that lie directly in the folders, by their names without path."""
    wanted: dict[str, _Member] = {}
    for folder in folders:
        inside = {
            path.name: member
            for path, member in ((PurePosixPath(member.name), member) for member in members if member.is_file)
            if path.parent == PurePosixPath(folder) and is_image_name(path.name)
        }
        if not inside:
            raise UserError(f"'{file.name}' has no images in '{folder}'; its publisher may have changed it")
        if twice := wanted.keys() & inside.keys():
            raise UserError(f"'{file.name}' has '{min(twice)}' in more than one folder")
        wanted |= inside
    return wanted


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = CommandParser(
        prog="python -m datamodules.download",
        description="Fetch image sets into the data directory. A download that broke off goes on where it stopped.",
        epilog="example: python -m datamodules.download Set11 DIV2K --data_dir data",
    )
    fetched = [image_set.name for image_set in CATALOG.values() if image_set.archives]
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join(fetched))
    parser.add_argument("--data_dir", help="folder of the image sets (default: $CS_DATA, else data/)")
    try:
        options = parser.parse_args(arguments)
        for name in options.names:
            folder = download_set(name, options.data_dir)
            images = find_images(name, options.data_dir)
            print(f"{name}: {len(images)} images in {folder}; license: {CATALOG[name].license}")
            expected = CATALOG[name].fingerprint
            if expected is not None and fingerprint(images) != expected:
                print(f"note: these are not the pixels that this project's figures for {name} were computed on")
    except UserError as error:
        return report(error)
    except KeyboardInterrupt:
        print("stopped; run again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
