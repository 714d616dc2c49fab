"""Tables of a comparison for a paper, in LaTeX or Markdown: ``cs-models report OUT --table latex``."""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cs_models.errors import CommandParser, UserError, report
from cs_models.evaluation.report.figures import problem_title
from cs_models.evaluation.report.markdown import markdown_table
from cs_models.evaluation.report.summary import Setting, Summary, by_setting, named, summary_of
from cs_models.evaluation.report.tables import write_report
from cs_models.evaluation.results import ResultsFile, Row, only_writer

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", **{one: f"\\{one}" for one in "&%$#_{}"},
}  # fmt: skip
# What Markdown or the HTML in it could take for a command; `markdown_table` sees to the bars between cells.
MARKDOWN_SPECIAL = re.compile(r"([\\`*_~<>\[\]&])")


@dataclass(frozen=True)
class Score:
    """A score as it is printed."""

    title: str
    digits: int
    of: Callable[[Summary], float]


SCORES = {
    "psnr": Score("PSNR in dB", 2, lambda summary: summary.psnr_db),
    "ssim": Score("SSIM", 4, lambda summary: summary.ssim),
}


@dataclass(frozen=True)
class Markup:
    """How a kind of document writes things: text that stays what it is, the best value, the second, and infinity."""

    text: Callable[[str], str]
    best: str
    second: str
    infinity: str


def latex_text(text: str) -> str:
    """Any text as LaTeX that prints it."""
    return "".join(LATEX_SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def markdown_text(text: str) -> str:
    """Any text as Markdown that shows it."""
    return MARKDOWN_SPECIAL.sub(r"\\\1", " ".join(text.split()))


MARKUPS = {
    "latex": Markup(latex_text, r"\textbf{%s}", r"\underline{%s}", r"$\infty$"),
    "markdown": Markup(markdown_text, "**%s**", "<u>%s</u>", "∞"),
}


@dataclass(frozen=True)
class PaperTable:
    """A table of one set, its cells as they are printed.

    Attributes:
        caption: what is measured, plain text.
        ratios: the columns.
        lines: method, operator, and a cell for each ratio.
    """

    caption: str
    ratios: list[float]
    lines: list[tuple[str, str, list[str]]]

    @property
    def one_operator(self) -> bool:
        """Whether all lines have the same operator, which then needs no column."""
        return len({operator for _, operator, _ in self.lines}) == 1


def paper_tables(rows: Iterable[Row], kind: str, scores: Sequence[str] = ("psnr", "ssim")) -> str:
    """A table for each set, with the best value of each column bold and the second underlined.

    Values that are printed alike share a rank.

    Args:
        rows: single results, oldest first.
        kind: "latex" (for booktabs) or "markdown".
        scores: out of `SCORES`, in the order in which a cell has them.
    """
    problems: dict[str, dict[Setting, Summary]] = defaultdict(dict)
    for setting, group in by_setting(rows).items():
        problems[problem_title(group[0])][setting] = summary_of(setting, group)
    shown = [SCORES[score] for score in scores]
    tables = [_table(title, summaries, shown, MARKUPS[kind]) for title, summaries in problems.items()]
    return "\n\n".join(map(latex_table if kind == "latex" else markdown, tables))


def _table(title: str, summaries: dict[Setting, Summary], scores: Sequence[Score], markup: Markup) -> PaperTable:
    ratios = sorted({setting.ratio for setting in summaries})
    lines = list(_lines(summaries))
    marked = [
        [_marked([by_ratio.get(ratio) for *_, by_ratio in lines], score, markup) for score in scores]
        for ratio in ratios
    ]
    cells = [
        [" / ".join(texts[index] for texts in column if texts[index]) for column in marked]
        for index in range(len(lines))
    ]
    caption = f"{' / '.join(score.title for score in scores)} on {title} ({_measured(summaries)})"
    table = [(name, operator, line) for (name, operator, _), line in zip(lines, cells, strict=True)]
    return PaperTable(caption, ratios, table)


def _measured(summaries: dict[Setting, Summary]) -> str:
    """How many images there are, and the operator where it is one."""
    counts = sorted({summary.images for summary in summaries.values()})
    noun = "signal" if any(setting.channels == "signal" for setting in summaries) else "image"
    images = f"{' to '.join(map(str, counts[:1] + counts[1:][-1:]))} {noun}{'s' if counts[-1] > 1 else ''}"
    operators = {setting.operator for setting in summaries}
    return f"{images}, operator {operators.pop()}" if len(operators) == 1 else images


def _lines(summaries: dict[Setting, Summary]) -> Iterable[tuple[str, str, dict[float, Summary]]]:
    """Name, operator and the summary at each ratio; names tell two lines of a method apart."""
    for operator in dict.fromkeys(setting.operator for setting in summaries):
        of_operator = {setting: summary for setting, summary in summaries.items() if setting.operator == operator}
        lines = named(of_operator)
        names = [name for name, _ in lines]
        for name, settings in lines:
            summary = of_operator[settings[0]]
            words = [summary.provenance, summary.precision, summary.schedule and f"schedule {summary.schedule}"]
            details = f" ({', '.join(filter(None, words))})" if names.count(name) > 1 else ""
            yield f"{name}{details}", operator, {setting.ratio: of_operator[setting] for setting in settings}


def _marked(column: Sequence[Summary | None], score: Score, markup: Markup) -> list[str]:
    """The values of a column as text, empty where there is none, the best and the second one marked.

    Means over a part of the images are not ranked.
    """
    shown = {index: f"{score.of(one):.{score.digits}f}" for index, one in enumerate(column) if one is not None}
    most = max((one.images for one in column if one is not None), default=0)
    ranked = {index for index, one in enumerate(column) if one is not None and one.images == most}
    values = sorted({float(shown[index]) for index in ranked if not math.isnan(float(shown[index]))}, reverse=True)
    marks = dict(zip(values, (markup.best, markup.second), strict=False)) if len(values) > 1 else {}

    def text(index: int) -> str:
        mark = marks.get(float(shown[index]), "%s") if index in ranked else "%s"
        return mark % (markup.infinity if math.isinf(float(shown[index])) else shown[index])

    return [text(index) if index in shown else "" for index in range(len(column))]


def markdown(table: PaperTable) -> str:
    """The table under its caption."""
    header = ["Method", *([] if table.one_operator else ["Operator"]), *(f"{ratio:g}" for ratio in table.ratios)]
    lines = [
        [markdown_text(name), *([] if table.one_operator else [markdown_text(operator)]), *cells]
        for name, operator, cells in table.lines
    ]
    return f"{markdown_text(table.caption)}\n\n{markdown_table(header, lines)}"


def latex_table(table: PaperTable) -> str:
    """The table as a float for booktabs."""
    first = ["Method"] if table.one_operator else ["Method", "Operator"]
    count = len(table.ratios)
    group = rf"\multicolumn{{{count}}}{{c}}{{CS ratio}}"
    rule = rf"\cmidrule(lr){{{len(first) + 1}-{len(first) + count}}}"
    header = [*first, *(f"{ratio:g}" for ratio in table.ratios)]
    body = [
        [latex_text(name), *([] if table.one_operator else [latex_text(operator)]), *cells]
        for name, operator, cells in table.lines
    ]
    label = re.sub(r"[^a-z0-9]+", "-", table.caption.lower()).strip("-")
    rows = [" & ".join(cells) + r" \\" for cells in ([*([""] * len(first)), group], header, *body)]
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{latex_text(table.caption)}.}}",
            rf"  \label{{tab:{label}}}",
            rf"  \begin{{tabular}}{{{'l' * len(first)}{'c' * count}}}",
            r"    \toprule",
            f"    {rows[0]}",
            f"    {rule}",
            f"    {rows[1]}",
            r"    \midrule",
            *(f"    {row}" for row in rows[2:]),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = CommandParser(
        prog="cs-models report",
        description="Write the report of a results folder anew, or print its tables for a paper.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RESULTS", help="results folders, oldest first")
    parser.add_argument("--table", choices=sorted(MARKUPS), help="print tables of this kind and write nothing")
    parser.add_argument("--score", choices=sorted(SCORES), help="of --table: only this score (both)")
    try:
        options = parser.parse_args(arguments)
        rows = [row for folder in options.folders for row in ResultsFile(folder).rows()]
        if not rows:
            raise UserError(f"{', '.join(map(str, options.folders))}: no results yet")
        if options.table is not None:
            print(paper_tables(rows, options.table, [options.score] if options.score else list(SCORES)))
        elif options.score is not None or len(options.folders) > 1:
            raise UserError("a report is of one folder and has both scores; give --table, or join folders by merge")
        else:
            with only_writer(options.folders[0]):
                print(write_report(rows, options.folders[0]))
    except UserError as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
