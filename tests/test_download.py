from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cs_models.errors import UserError
from datamodules import download
from datamodules.catalog import CATALOG, Archive, ImageSet, find_images, fingerprint
from datamodules.download import download_set, extract, fetch, main


@dataclass
class Server:
    """A local HTTP server whose behaviour a test can change between requests."""

    address: str
    content: bytes = b""
    ranges: bool = True
    break_after: int | None = None
    chunked: bool = False
    status: int | None = None
    requests: list[str | None] = field(default_factory=list)

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            requested = self.headers.get("Range")
            state.requests.append(requested)
            self.close_connection = True
            if state.status is not None:
                self.send_error(state.status)
                return
            first = int(requested.removeprefix("bytes=").rstrip("-")) if requested and state.ranges else 0
            size = len(state.content)
            if first >= size > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
            body = state.content[first:]
            cut = body if state.break_after is None else body[: state.break_after]
            if state.chunked:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(cut), cut))
                if state.break_after is None:
                    self.wfile.write(b"0\r\n\r\n")
            else:
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(cut)

        def log_message(self, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


def png(seed: int, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (size, size)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    "set-1/images/b.png": png(1),
    "set-1/images/a.png": png(2),
    "set-1/images/notes.txt": b"text",
    "set-1/images/deep/c.png": png(3),
    "set-1/other/d.png": png(4),
    "__MACOSX/set-1/images/._a.png": b"x",
}


def make_zip(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("set-1/")
        for name, content in files.items():
            archive.writestr(name, content)
        for name, target in (links or {}).items():
            link = zipfile.ZipInfo(name)
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, target)
    return buffer.getvalue()


def make_tar(files: dict[str, bytes], links: dict[str, str] | None = None, kind: bytes = tarfile.SYMTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return buffer.getvalue()


@pytest.fixture
def tiny(server: Server, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A set "Tiny" in the catalog, whose archive the local server holds."""
    server.content = make_zip(FILES)
    checksum = "sha256:" + hashlib.sha256(server.content).hexdigest()
    archive = Archive(server.url("tiny.zip"), ("set-1/images",), checksum)
    register(monkeypatch, archive)
    return archive


def register(monkeypatch: pytest.MonkeyPatch, *archives: Archive, fingerprint: str | None = None) -> None:
    tiny = ImageSet("Tiny", "two images", "nobody", archives=archives, fingerprint=fingerprint)
    monkeypatch.setitem(CATALOG, "Tiny", tiny)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_fails(capsys: pytest.CaptureFixture[str], data_dir: Path, *words: str) -> None:
    """The command ends with exit code 2 and one line that holds the words; no folder appears."""
    assert main(["Tiny", "--data_dir", str(data_dir)]) == 2
    lines = capsys.readouterr().err.splitlines()
    error = [line for line in lines if line and not line.startswith("tiny.zip:")]  # without the progress bar
    assert len(error) == 1, error
    assert error[0].startswith("error: ")
    for word in words:
        assert word in error[0]
    assert not (data_dir / "Tiny").exists()


def test_download_gives_the_wanted_images_and_leaves_nothing_else(
    tmp_path: Path, server: Server, tiny: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["Tiny", "--data_dir", str(tmp_path / "new" / "data")]) == 0
    assert names(tmp_path / "new" / "data") == ["Tiny"]
    assert names(tmp_path / "new" / "data" / "Tiny") == ["a.png", "b.png"]
    assert (tmp_path / "new" / "data" / "Tiny" / "a.png").read_bytes() == FILES["set-1/images/a.png"]
    assert "Tiny: 2 images" in capsys.readouterr().out


def test_a_set_that_is_there_is_not_fetched_again(tmp_path: Path, server: Server, tiny: Archive) -> None:
    download_set("Tiny", tmp_path)
    download_set("Tiny", tmp_path)
    assert len(server.requests) == 1


def test_several_archives_and_folders_make_one_set(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = make_tar(FILES)
    one = Archive(server.url("one.tgz"), ("set-1/images", "set-1/other"))
    two = Archive(server.url("two.tgz"), ("set-1/images/deep",))
    register(monkeypatch, one, two)
    assert names(download_set("Tiny", tmp_path)) == ["a.png", "b.png", "c.png", "d.png"]


@pytest.mark.parametrize("chunked", [False, True])
def test_broken_connection_is_said_and_the_next_run_goes_on(
    tmp_path: Path, server: Server, tiny: Archive, capsys: pytest.CaptureFixture[str], chunked: bool
) -> None:
    server.break_after, server.chunked = 1000, chunked
    assert_fails(capsys, tmp_path, "cannot download", "run again")
    server.break_after, server.chunked = None, False
    assert main(["Tiny", "--data_dir", str(tmp_path)]) == 0
    assert names(tmp_path / "Tiny") == ["a.png", "b.png"]
    assert server.requests[1] == (None if chunked else "bytes=1000-")


def test_server_without_ranges_starts_again_cleanly(tmp_path: Path, server: Server, tiny: Archive) -> None:
    server.ranges, server.break_after = False, 1000
    with pytest.raises(UserError, match="broke off after 1000 of"):
        download_set("Tiny", tmp_path)
    server.break_after = None
    assert names(download_set("Tiny", tmp_path)) == ["a.png", "b.png"]
    assert server.requests == [None, "bytes=1000-"]


def test_complete_part_of_a_killed_run_is_taken(tmp_path: Path, server: Server, tiny: Archive) -> None:
    (tmp_path / "tiny.zip.part").write_bytes(server.content)
    assert fetch(tiny, tmp_path).read_bytes() == server.content
    assert server.requests == [f"bytes={len(server.content)}-"]


def test_part_that_is_longer_than_the_file_is_dropped(tmp_path: Path, server: Server, tiny: Archive) -> None:
    (tmp_path / "tiny.zip.part").write_bytes(server.content + b"more")
    assert fetch(tiny, tmp_path).read_bytes() == server.content


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_wrong_checksum_is_said_and_the_next_run_starts_anew(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    algorithm: str,
) -> None:
    good = make_zip(FILES)
    checksum = f"{algorithm}:{hashlib.new(algorithm, good).hexdigest()}"
    register(monkeypatch, Archive(server.url("tiny.zip"), ("set-1/images",), checksum))
    server.content = good[:-1] + b"?"
    assert_fails(capsys, tmp_path, algorithm, "expected", "run again")
    server.content = good
    assert names(download_set("Tiny", tmp_path)) == ["a.png", "b.png"]
    assert server.requests == [None, None]


@pytest.mark.parametrize("status", [404, 500])
def test_refusal_of_the_server(
    tmp_path: Path, server: Server, tiny: Archive, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    server.status = status
    assert_fails(capsys, tmp_path, "cannot download", tiny.url)


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    register(monkeypatch, Archive("http://127.0.0.1:9/tiny.zip", ("x",)))
    assert_fails(capsys, tmp_path, "cannot download", "refused")


HOSTILE = ["../evil.png", "/etc/evil.png", "set-1/../../evil.png", "..\\evil.png", "C:\\evil.png"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_archive_with_members_outside_is_refused(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[dict[str, bytes]], bytes],
    name: str,
) -> None:
    server.content = make(FILES | {name: png(5)})
    register(monkeypatch, Archive(server.url("tiny.zip"), ("set-1/images",)))
    assert_fails(capsys, tmp_path / "data", "not safe", name)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../secret", "../../.."])
@pytest.mark.parametrize("kind", ["zip", "symbolic", "hard"])
def test_archive_with_links_outside_is_refused(tmp_path: Path, kind: str, target: str) -> None:
    links = {"set-1/images/link.png": target}
    kinds = {"symbolic": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
    content = make_zip(FILES, links) if kind == "zip" else make_tar(FILES, links, kinds[kind])
    (tmp_path / "x.archive").write_bytes(content)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"not safe: its member 'set-1/images/link\.png'"):
        extract(tmp_path / "x.archive", ["set-1/images"], tmp_path / "images")
    assert names(tmp_path / "images") == []


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_links_inside_are_harmless_and_not_taken(
    tmp_path: Path, make: Callable[[dict[str, bytes], dict[str, str]], bytes]
) -> None:
    (tmp_path / "x.archive").write_bytes(make(FILES, {"set-1/images/link.png": "../other/d.png"}))
    (tmp_path / "images").mkdir()
    extract(tmp_path / "x.archive", ["set-1/images"], tmp_path / "images")
    assert names(tmp_path / "images") == ["a.png", "b.png"]


def test_devices_are_not_taken(tmp_path: Path) -> None:
    content = make_tar(FILES, {"set-1/images/device.png": ""}, tarfile.CHRTYPE)
    (tmp_path / "x.tgz").write_bytes(content)
    (tmp_path / "images").mkdir()
    extract(tmp_path / "x.tgz", ["set-1/images"], tmp_path / "images")
    assert names(tmp_path / "images") == ["a.png", "b.png"]


def damage_the_middle(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes(byte ^ 255 for byte in content[middle : middle + 40]) + content[middle + 40 :]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    "damage", [lambda content: b"<html>moved</html>", lambda content: content[: len(content) // 2], damage_the_middle]
)
def test_damaged_archive_is_removed_so_that_the_next_run_works(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[dict[str, bytes]], bytes],
    damage: Callable[[bytes], bytes],
) -> None:
    register(monkeypatch, Archive(server.url("tiny.zip"), ("set-1/images",)))
    server.content = damage(make(FILES))
    assert_fails(capsys, tmp_path, "damaged", "run again")
    server.content = make(FILES)
    assert names(download_set("Tiny", tmp_path)) == ["a.png", "b.png"]


def test_encrypted_archive_is_one_line(tmp_path: Path) -> None:
    content = bytearray(make_zip({"x/a.png": png(1)}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rindex(signature) + offset] |= 1  # the flag "encrypted"
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match="encrypted"):
        extract(tmp_path / "x.zip", ["x"], tmp_path)


def test_archive_without_the_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(make_zip(FILES))
    with pytest.raises(UserError, match="no images in 'set-2/images'"):
        extract(tmp_path / "x.zip", ["set-2/images"], tmp_path)


def test_one_name_in_two_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(make_zip({"x/a.png": png(1), "y/a.png": png(2)}))
    with pytest.raises(UserError, match=r"'a\.png' in more than one folder"):
        extract(tmp_path / "x.zip", ["x", "y"], tmp_path)


def test_full_disk_while_receiving(
    tmp_path: Path,
    server: Server,
    tiny: Archive,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    staging = tmp_path / ".Tiny.download"
    staging.mkdir()
    (staging / "tiny.zip.part").symlink_to("/dev/full")  # every write to it fails with ENOSPC
    assert_fails(capsys, tmp_path, "no space left", "run again")
    (staging / "tiny.zip.part").unlink()
    assert names(download_set("Tiny", tmp_path)) == ["a.png", "b.png"]


def test_disk_too_small_for_the_images(
    tmp_path: Path,
    server: Server,
    tiny: Archive,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
        assert_fails(capsys, tmp_path, "no space left", "100 free")
    assert names(download_set("Tiny", tmp_path)) == ["a.png", "b.png"]
    assert len(server.requests) == 1  # the archive was kept


def test_data_directory_that_cannot_be_written(
    tmp_path: Path, server: Server, tiny: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_fails(capsys, tmp_path / "file" / "data", "cannot write")


def test_images_left_by_a_killed_extraction_are_replaced(tmp_path: Path, server: Server, tiny: Archive) -> None:
    left = tmp_path / ".Tiny.download" / "images"
    left.mkdir(parents=True)
    (left / "half.png").write_bytes(b"half")
    assert names(download_set("Tiny", tmp_path)) == ["a.png", "b.png"]


def test_other_pixels_than_ours_are_pointed_out(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content = make_zip(FILES)
    archive = Archive(server.url("tiny.zip"), ("set-1/images",))
    register(monkeypatch, archive, fingerprint="0" * 64)
    assert main(["Tiny", "--data_dir", str(tmp_path)]) == 0
    assert "not the pixels" in capsys.readouterr().out
    register(monkeypatch, archive, fingerprint=fingerprint(find_images("Tiny", tmp_path)))
    assert main(["Tiny", "--data_dir", str(tmp_path)]) == 0
    assert "not the pixels" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Set1", "did you mean 'Set11'"),
        ("bundled", "nothing to download"),
        ("DIV2K-256", "download DIV2K"),
        ("WED", "exploration_database_and_code.rar"),
    ],
)
def test_sets_that_cannot_be_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert main([name, "--data_dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_stopping_by_hand_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "download_set", interrupt)
    assert main(["Set11"]) == 130
    assert "run again" in capsys.readouterr().err
