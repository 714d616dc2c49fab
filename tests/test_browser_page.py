"""The page that reconstructs in the browser: opened from disk, it gives the figures of eval.py."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from cs_models.cli.main import main as command
from cs_models.errors import UserError
from cs_models.evaluation.results import read_rows
from datamodules.catalog import load_set
from tests.conftest import REPOSITORY, module_of

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LIMIT_SECONDS = 400
VISIT = """<script>
const tell = (seen) => parent.postMessage({ fits: document.documentElement.scrollWidth <= innerWidth, ...seen }, "*");
const figure = (id) => Number($(`#${id}`).dataset.psnr);
document.addEventListener("done", () =>
  tell({ psnr: Object.fromEntries(["linear", "tv", "network-result"].map((id) => [id, figure(id)])) }));
new MutationObserver(() => $("#state").className === "failed" && tell({ failed: $("#state").textContent }))
  .observe($("#state"), { childList: true });
onmessage = () => tell({ outside: performance.getEntriesByType("resource").map(({ name }) => name.slice(0, 5)) });
</script></body>"""
FRAME = """<!doctype html><iframe src="try.html" width="1280" height="900"></iframe><script>
let seen;
onmessage = ({ data }) => {
  if (data.psnr) {
    seen = data;
    document.querySelector("iframe").width = 400;
    setTimeout(() => frames[0].postMessage("", "*"), 500);
  } else console.log("SEEN" + JSON.stringify({ ...seen, ...data, fits: [seen?.fits, data.fits] }) + "SEEN");
};
</script>"""


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    """``docs/browser/build.py``, which is no part of the package."""
    pytest.importorskip("onnxscript")
    return module_of(REPOSITORY / "docs/browser/build.py", "browser_page")


def visited(browser: str, folder: Path) -> dict[str, object]:
    """What the page told the frame around it before the time was up."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    options += ["--enable-logging=stderr", "--window-size=1400,1000", (folder / "frame.html").as_uri()]
    process = subprocess.Popen([browser, *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    timer = threading.Timer(LIMIT_SECONDS, process.kill)
    timer.start()
    said = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"SEEN(\{.*\})SEEN", line):
                return json.loads(found[1])
    finally:
        timer.cancel()
        process.terminate()
        process.wait()
    pytest.fail("the page told nothing: " + "".join(said[-20:]))


@pytest.mark.slow
def test_the_page_gives_the_figures_of_eval(builder: ModuleType, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs Chromium or Chrome")
    try:
        builder.runtime(builder.HERE / ".npm")
    except UserError as error:
        pytest.skip(str(error))
    photo = tmp_path / "photo.png"
    colour = load_set("bundled", channels="rgb")[2][1][:, 60:130, 100:151]  # of coffee: what is grey tests no weights
    Image.fromarray((colour * 255).round().byte().permute(1, 2, 0).numpy()).save(photo)
    source = "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()
    page = builder.build(tmp_path / "try.html", ("r_coast",), (0.1,), [{"title": "cup", "source": source}])
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", VISIT), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME)
    seen = visited(browser, tmp_path)

    words = f"--image {photo} --channels luminance --ratios 0.1 --precision fp32 --device cpu --out {tmp_path / 'out'}"
    assert command(["eval", "--methods", "linear,tv,r_coast", *words.split()]) == 0
    rows = {row.method: row.psnr_db for row in read_rows(tmp_path / "out/per_image.csv")}
    expected = {"linear": rows["linear"], "tv": rows["tv"], "network-result": rows["r_coast"]}
    assert "failed" not in seen, seen
    assert seen["psnr"] == pytest.approx(expected, abs=0.01)
    assert seen["fits"] == [True, True]  # at 1280 and at 400 pixels, without scrolling sideways
    assert set(seen["outside"]) <= {"data:", "blob:"}  # nothing is fetched from anywhere


def test_numbers_come_back_from_their_planes(builder: ModuleType) -> None:
    data = bytes(range(12))
    mixed = builder.planes(data)
    assert mixed[:3] == bytes([0, 4, 8])
    assert bytes(mixed[place % 4 * 3 + place // 4] for place in range(12)) == data


def test_another_archive_is_refused(builder: ModuleType, tmp_path: Path) -> None:
    (tmp_path / (builder.PACKAGE.replace("@", "-") + ".tgz")).write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the onnxruntime-web"):
        builder.runtime(tmp_path)
