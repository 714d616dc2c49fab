"""Every script of the gallery runs, at a small size."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "docs/gallery").glob("plot_*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script(script: Path) -> None:
    plt.switch_backend("agg")
    source, count = re.subn(r"^SIZE = \d+$", "SIZE = 40", script.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert count == 1
    source, count = re.subn(r"^STEPS = \d+$", "STEPS = 2", source, flags=re.MULTILINE)
    assert count == source.count("backward()")  # what trains, trains for two steps
    names = {"__name__": "gallery_script"}
    exec(compile(source, script, "exec", dont_inherit=True), names)
    assert plt.get_fignums()
    plt.close("all")
