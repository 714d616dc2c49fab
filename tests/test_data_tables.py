"""Tables as other programs write them: the right numbers, or one line that says what to do."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest

from cs_models import host_memory
from cs_models.errors import UserError
from datamodules.numerals import is_number, to_number
from datamodules.tables import Table, parse_options, read_table

MANY = range(20)


def read(folder: Path, text: str | bytes, options: str = "") -> Table:
    path = folder / "s.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path, parse_options(options))


def refused(folder: Path, text: str | bytes, options: str = "") -> str:
    with pytest.raises(UserError) as raised:
        read(folder, text, options)
    message = str(raised.value)
    assert "s.csv" in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(folder))
    return message


READ = {
    # what: text, names, columns
    "names with underscores": ("2023_01,2023_02\n1,4\n2,5\n", ["2023_01", "2023_02"], [[1, 2], [4, 5]]),
    "a name among numbers": ("1_a,b\n1,4\n2,5\n", ["1_a", "b"], [[1, 2], [4, 5]]),
    "semicolons and decimal commas": ("a;b\n1,5;2\n3,25;4,1\n", ["a", "b"], [[1.5, 3.25], [2, 4.1]]),
    "tabs and decimal commas": ("1,5\t2,25\n3\t-4,1e2\n", ["0", "1"], [[1.5, 3], [2.25, -410]]),
    "one column with decimal commas": ("volt\n1,5\n-2,25\n3,1\n", ["volt"], [[1.5, -2.25, 3.1]]),
    "zeros behind the decimal comma": ("1,05\n2,5\n", ["0"], [[1.05, 2.5]]),
    "nothing before the decimal comma": (",5\n2,5\n", ["0"], [[0.5, 2.5]]),
    "quoted decimal commas": ('"a","b"\n"1,5","2,25"\n"2,5","3,25"\n', ["a", "b"], [[1.5, 2.5], [2.25, 3.25]]),
    "quoted thousands": ('a,b\n"1,234.5","1,000,000"\n2,3\n', ["a", "b"], [[1234.5, 2], [1e6, 3]]),
    "points between thousands": ("a;b\n1.234,5;1.000.000\n2,5;3\n", ["a", "b"], [[1234.5, 2.5], [1e6, 3]]),
    "thousands and whole numbers with commas": ("a;b\n1.234;2,5\n999;3\n", ["a", "b"], [[1234, 999], [2.5, 3]]),
    "apostrophes between thousands": ("a;b\n1'234.5;2\n3;4\n", ["a", "b"], [[1234.5, 3], [2, 4]]),
    "blanks between thousands": ("a;b\n1\u202f234,5;2\n3 000;4\n", ["a", "b"], [[1234.5, 3000], [2, 4]]),
    "pandas' index": (",a,b\n0,1.5,2\n1,2.5,3\n", ["a", "b"], [[1.5, 2.5], [2, 3]]),
    "pandas' index below years": (",2019,2020\n0,1.5,2\n1,2.5,3\n", ["2019", "2020"], [[1.5, 2.5], [2, 3]]),
    "pandas' index of dates": (",a\n2023-01-01,1\n2023-01-02,3\n", ["a"], [[1, 3]]),
    "pandas' index read back": ("Unnamed: 0,a\n0,1\n1,3\n", ["a"], [[1, 3]]),
    "R's row names": ('"","a","b"\n"1",1.5,2\n"2",2.5,NA\n', ["a", "b"], [[1.5, 2.5], [2, np.nan]]),
    "a time": ("time,a\n0,5\n0.1,3\n0.3,4\n", ["a"], [[5, 3, 4]]),
    "a time with its unit": ("Time (s),a\n0,5\n0.1,3\n", ["a"], [[5, 3]]),
    "a time of day": ("clock,a\n12:30:00,5\n12:30:01.5,3\n", ["a"], [[5, 3]]),
    "dates": ("day;a\n01/02/2023;5\n02/02/2023 10:00;3\n", ["a"], [[5, 3]]),
    "temperatures called t": ("t,a\n20,5\n21,3\n20.5,4\n", ["t", "a"], [[20, 21, 20.5], [5, 3, 4]]),
    "times alone": ("time\n0\n1\n3\n", ["time"], [[0, 1, 3]]),
    "WFDB's samples": (
        "'sample #','MLII','V5'\n0,995,1011\n1,995,-\n2,996,1008\n",
        ["MLII", "V5"],
        [[995, 995, 996], [1011, np.nan, 1008]],
    ),
    "WFDB's units": (
        "'Elapsed time','MLII'\n'hh:mm:ss.mmm','mV'\n'0:00.000',-0.145\n'0:00.003',-0.15\n",
        ["MLII"],
        [[-0.145, -0.15]],
    ),
    "PhysioBank's dates": (
        "'Time','II'\n'[12:00:00.000 01/01/1990]',1\n'[12:00:00.008 01/01/1990]',3\n",
        ["II"],
        [[1, 3]],
    ),
    "a separator at every end": ("a,b,\n1,2,\n3,4,\n", ["a", "b"], [[1, 3], [2, 4]]),
    "a separator at the ends of samples": ("a,b\n1,2,\n3,4,\n", ["a", "b"], [[1, 3], [2, 4]]),
    "a separator at the ends without names": ("1;2;\n3;5;\n", ["0", "1"], [[1, 3], [2, 5]]),
    "separators at some ends": ("a,b\n1,2\n3,4,,\n", ["a", "b"], [[1, 3], [2, 4]]),
    "lines of separators": ("a;b;;\n1;2;;\n3;4;;\n;;;\n;;;\n", ["a", "b"], [[1, 3], [2, 4]]),
    "an empty last cell": ("a,b\n1,2\n3,\n", ["a", "b"], [[1, 3], [2, np.nan]]),
    "marks of missing samples": (
        "a,b\nNA,1\nn/a,NaN\nnull,-\n4,#N/A\nNone,5\n",
        ["a", "b"],
        [[np.nan, np.nan, np.nan, 4, np.nan], [1, np.nan, np.nan, np.nan, 5]],
    ),
    "a missing first sample": ("NA\n1\n2\n", ["0"], [[np.nan, 1, 2]]),
    "comments": ("# Fs = 360\n\na,b\n# gap\n1,2\n3,4\n#end", ["a", "b"], [[1, 3], [2, 4]]),
    "numpy's own": ("# a b\n1.0e+00 4.0e+00\n2.0e+00 5.0e+00\n", ["0", "1"], [[1, 2], [4, 5]]),
    "blanks between columns": ("a   b\n1   4\n2  5.5\n", ["a", "b"], [[1, 2], [4, 5.5]]),
    "bars": ("a|b\n1|4\n2|5\n", ["a", "b"], [[1, 2], [4, 5]]),
    "Excel's hint": ("sep=;\na;b\n1;4\n2;5\n", ["a", "b"], [[1, 2], [4, 5]]),
    "commas in a name": ('"Temp, in C";"Hum, in %"\n1;4\n2;5\n', ["Temp, in C", "Hum, in %"], [[1, 2], [4, 5]]),
    "Fortran's exponents": ("a,b\n1.5D+01,4\n2d-1,5\n", ["a", "b"], [[15, 0.2], [4, 5]]),
    "a real minus sign": ("a,b\n\u22121.5,4\n2,5\n", ["a", "b"], [[-1.5, 2], [4, 5]]),
    "an old Mac's lines": ("a,b\r1,4\r2,5\r", ["a", "b"], [[1, 2], [4, 5]]),
    "Windows' lines": ("a,b\r\n1,4\r\n2,5\r\n", ["a", "b"], [[1, 2], [4, 5]]),
}


@pytest.mark.parametrize(("text", "names", "columns"), READ.values(), ids=READ)
def test_what_leaves_no_doubt_is_read(tmp_path: Path, text: str, names: list[str], columns: list[list[float]]) -> None:
    table = read(tmp_path, text)
    assert table.names == names
    assert np.array_equal(table.values, columns, equal_nan=True)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_encodings_that_a_file_shows(tmp_path: Path, encoding: str) -> None:
    table = read(tmp_path, "Höhe,b\n1,4\n2,5\n".encode(encoding))
    assert table.names == ["Höhe", "b"]
    assert table.values.tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "cp437", "shift_jis"])
def test_other_encodings_are_named_by_the_user(tmp_path: Path, encoding: str) -> None:
    name = "高さ" if encoding == "shift_jis" else "Höhe"
    assert read(tmp_path, f"{name},b\n1,4\n2,5\n".encode(encoding), f"encoding={encoding}").names == [name, "b"]


@pytest.mark.parametrize(
    "content", ["a,b\n1,2".encode("utf-16-le"), b"\x00\x01\x02", b"a,b\n1,2\n\x1a", b"\x89PNG\x1a\n\xff"]
)
def test_what_is_no_text_says_so(tmp_path: Path, content: bytes) -> None:
    assert ":encoding=" in refused(tmp_path, content)


def test_a_wrong_encoding_says_so(tmp_path: Path) -> None:
    assert "not in ascii" in refused(tmp_path, "ö\n1\n", "encoding=ascii")


RAMP = "\n".join(f"{0.0028 * i:.4f},{i * i % 7},{i % 5}" for i in MANY)
DOUBTFUL = {
    # what: text, part of the line, options and what they give
    "whole numbers or decimal commas": (
        "1,5\n2,7\n",
        ":decimal=comma",
        {"decimal=comma": [[1.5, 2.7]], "decimal=point": [[1, 2], [5, 7]]},
    ),
    "thousands or decimals": (
        "a;b\n1,234;2\n3,456;4\n",
        "'1,234'",
        {"decimal=comma": [[1.234, 3.456], [2, 4]], "decimal=point": [[1234, 3456], [2, 4]]},
    ),
    "thousands or columns": (
        "1 234\n5 678\n",
        ":separator=space",
        {"separator=space": [[1, 5], [234, 678]], "decimal=point": [[1234, 5678]]},
    ),
    "a time without a name": (
        RAMP,
        ":columns=1",
        {
            "columns=1+2": [[i * i % 7 for i in MANY], [i % 5 for i in MANY]],
            "columns=all": [[round(0.0028 * i, 4) for i in MANY], [i * i % 7 for i in MANY], [i % 5 for i in MANY]],
        },
    ),
    "a time with another name": ("x,b,c\n" + RAMP, ":columns=1", {"columns=c": [[i % 5 for i in MANY]]}),
    "lines before the table": ("Recorder 7\nOffice,3\na,b\n1,4\n2,5\n", ":skip=2", {"skip=2": [[1, 2], [4, 5]]}),
    "text among the samples": (
        "a,where\n1,Bonn\n2,Rome\n",
        ":columns=",
        {"columns=a": [[1, 2]], "columns=0": [[1, 2]]},
    ),
}


@pytest.mark.parametrize(("text", "message", "answers"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_can_be_read_in_two_ways_is_asked_for(
    tmp_path: Path, text: str, message: str, answers: dict[str, list[list[float]]]
) -> None:
    assert message in refused(tmp_path, text)
    for options, columns in answers.items():
        assert read(tmp_path, text, options).values.tolist() == columns


@pytest.mark.parametrize(
    ("text", "options", "names"),
    [
        ("2019,2020\n1,4\n2,5\n", "header=yes", ["2019", "2020"]),
        ("x\n1\n2\n", "header=no:missing=9", None),
        ("% 1\na,b\n1,4\n", "comment=%", ["a", "b"]),
        ("#1,#2\n1,4\n", "comment=", ["#1", "#2"]),
        ("a+b,c\n1,4\n", "columns=a+b", ["a+b"]),
        ("c,b,a\n1,4,7\n", "columns=a+c", ["a", "c"]),
        ("time,a\n1,4\n2,5\n", "columns=time", ["time"]),
        ("a,b;c,d\n1;4\n", "separator=semicolon", ["a,b", "c,d"]),
    ],
)
def test_options_do_what_they_say(tmp_path: Path, text: str, options: str, names: list[str] | None) -> None:
    if names is None:
        assert "'x' in column '0'" in refused(tmp_path, text, options)
    else:
        assert read(tmp_path, text, options).names == names


def test_what_was_decided_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read(tmp_path, "time,H\xf6he\ns,m\n0,4\n1,5\n".encode("latin-1"))
    assert "s.csv: left out its first column 'time'" in caplog.text
    assert "read as Latin-1" in caplog.text
    assert "for units: s, m" in caplog.text


BAD = {
    "a field over 128 KB": ("a,b\n1," + "9" * 200_000 + "\n", "field"),
    "one number over 128 KB": ("a\n" + "9" * 200_000 + "x\n", "is not a number"),
    "a quote over 128 KB": ('a,b\n"' + "1,2\n" * 60_000, "field"),
    "a long name": ("a" * 5000 + "\n1\n2\n", "5000 characters"),
    "underscores in a number": ("a,b\n1_000,2\n", "'1_000' in column 'a', sample 0, is not a number"),
    "hexadecimal": ("a,b\n0x10,2\n", "'0x10'"),
    "two decimal marks": ("a;b\n1,5;2.5\n", "is not a number"),
    "too few values": ("a,b\n1,2\n3\n", "sample 1 has 1 values, expected 2"),
    "too many values": ("a,b\n1,2\n3,4,5\n", "sample 1 has 3 values, expected 2"),
    "too many values without names": ("1,2\n3,4,5\n", "sample 1 has 3 values, expected 2"),
    "only comments": ("# a\n# b\n", "is empty"),
    "only blanks": (" \n\n", "is empty"),
    "only names": ("a,b\n", "no samples"),
    "a page": ("<html>\n<body>\n</html>\n", "is not a number"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_is_no_table_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        ",".join(map(str, range(100_000))) + "\n" + ",".join(["1.5"] * 100_000) + "\n",
        ",".join(f"c{i}" for i in range(100_000)) + ",\n" + ("NA," * 100_000 + "\n") * 2,
        "a,b" + "," * 100_000 + "\n" + ("1,2" + "," * 100_000 + "\n") * 5,
        "a\n" + "1\n\n" * 100_000,
        "1,5;" * 50_000 + "\n" + "1;" * 50_000,
    ],
    ids=["values", "missing", "separators", "lines", "decimals"],
)
def test_very_wide_and_long_tables_take_seconds(tmp_path: Path, text: str) -> None:
    start = time.perf_counter()
    read(tmp_path, text)
    assert time.perf_counter() - start < 10


def test_a_table_larger_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "memory_available", lambda: 1000)
    monkeypatch.setattr(host_memory, "SMALL", 0)
    assert "needs about 0.0 GB of memory; there is about 0.0 GB" in refused(tmp_path, "1,2\n" * 1000)


@pytest.mark.parametrize(
    ("cell", "decimal", "value"),
    [
        ("1,234,567.5", "point", 1234567.5),
        ("1.234.567,5", "comma", 1234567.5),
        ("-1 234,5", "comma", -1234.5),
        ("+.5", "point", 0.5),
        ("5.", "point", 5),
        ("1,5e-3", "comma", 0.0015),
        ("-inf", "point", -np.inf),
    ],
)
def test_numbers(cell: str, decimal: str, value: float) -> None:
    assert to_number(cell, decimal) == value


@pytest.mark.parametrize(
    "cell", ["1,23", "12,3456", "1_0", "", "e5", "--1", "1 2", "1.5.2", "0x1", "1e", "nan1", "\u0661"]
)
def test_no_numbers(cell: str) -> None:
    assert not is_number(cell)
