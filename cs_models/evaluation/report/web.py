"""A report as Markdown, and as one HTML file with its pictures inside, which can be sent and opened anywhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from cs_models.errors import UserError
from cs_models.files import replacing

PICTURE = re.compile(r"!\[(.*)\]\((figures/[^/()]+\.png)\)")
NUMBER = re.compile(r"[-+]?(\d[\d,]*)?\.?\d+(e[-+]?\d+)?( %( of \d+)?)?|inf|nan")
BETWEEN_CELLS = re.compile(r"(?<!\\)\|")
# Nothing is loaded, whatever the names in a report are.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p { max-width: 50rem; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
th { text-align: left; vertical-align: bottom; } td { min-width: 8rem; max-width: 26rem; overflow-wrap: anywhere; }
td:last-child { min-width: 16rem; }
.n, td.n:last-child { text-align: right; white-space: nowrap; min-width: 0; }
img { display: block; max-width: 100%; height: auto; margin: 1.5rem 0; background: white; border-radius: .3rem; }
"""


def write_pages(out: Path, name: str, sections: Sequence[str]) -> list[Path]:
    """Write sections of Markdown as ``NAME.md`` and ``NAME.html``.

    Args:
        out: folder of both, and of ``figures``.
        name: of the files.
        sections: headings, paragraphs, tables and pictures.

    Raises:
        UserError: if a file cannot be written.
    """
    text = "\n\n".join(sections) + "\n"
    paths = [out / f"{name}.md", out / f"{name}.html"]
    for path, content in zip(paths, (text, page(text, out)), strict=True):
        try:
            with replacing(path) as partial:
                partial.write_text(content, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
    return paths


def append_section(out: Path, section: str) -> None:
    """Add a section to the end of a results folder's report.

    Raises:
        UserError: if the report cannot be read or written.
    """
    path = out / "report.md"
    try:
        present = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    write_pages(out, "report", [present, section])


def page(markdown: str, folder: Path) -> str:
    """The HTML of a report.

    Args:
        markdown: headings, paragraphs, tables and pictures, with empty lines between them. All else in it is text.
        folder: where its figures lie.
    """
    blocks = [block for block in re.split(r"\n\s*\n", markdown.strip()) if block.strip()]
    title = escape(blocks[0].lstrip("# ")) if blocks else ""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>",
            f"<style>\n{STYLE}</style></head><body>",
            *(_block(block, folder) for block in blocks),
            "</body></html>",
            "",
        ]
    )


def _block(block: str, folder: Path) -> str:
    heading = re.fullmatch(r"(#{1,3}) (.*)", block)
    if heading:
        level = len(heading[1])
        return f"<h{level}>{escape(heading[2])}</h{level}>"
    picture = PICTURE.fullmatch(block)
    if picture and (folder / picture[2]).is_file():
        return _picture(picture[1], folder / picture[2])
    lines = block.splitlines()
    if all(line.startswith("|") for line in lines) and len(lines) > 1:
        return _table(lines)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(block))
    return f"<p>{text}</p>"


def _picture(title: str, path: Path) -> str:
    try:
        content = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{content}">'


def _table(lines: Sequence[str]) -> str:
    header, _, *body = [_cells(line) for line in lines]
    columns = list(zip(*body, strict=False))
    numeric = [all(_is_number(cell) for cell in column) for column in columns]
    numeric += [False] * (len(header) - len(numeric))

    def row(cells: Sequence[str], tag: str) -> str:
        marks = (' class="n"' if is_number else "" for is_number in numeric)
        inside = (f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=False))
        return f"<tr>{''.join(inside)}</tr>"

    parts = [f"<thead>{row(header, 'th')}</thead>", "<tbody>", *(row(cells, "td") for cells in body), "</tbody>"]
    return "\n".join(['<div class="table"><table>', *parts, "</table></div>"])


def _cells(line: str) -> list[str]:
    inside = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip().replace("\\|", "|") for cell in BETWEEN_CELLS.split(inside)]


def _is_number(cell: str) -> bool:
    return all(not part or NUMBER.fullmatch(part) for part in re.split(r" / | \.\. | ± ", cell))
