"""CSV files, in and out."""

import os

import pytest

from ddfm.errors import InputError
from ddfm.io.tables import read_table, write_table


def test_what_is_written_is_read_and_no_formula(tmp_path):
    cells = [
        "=cmd|' /C calc'!A0",
        "+1+1",
        "@SUM(A1)",
        "-a",
        "\tx",
        "-0.5",
        "+3",
        "1e-9",
        "-inf",
        "plain",
        'a "b", c',
        "",
    ]
    write_table(tmp_path / "t.csv", [[f"column {k}" for k in range(len(cells))], cells])
    header, (row,) = read_table(tmp_path / "t.csv", needed=2)
    assert len(header) == len(cells)
    assert row == [f"'{cell}" if cell[:1] in tuple("=+@-\t") and k < 5 else cell for k, cell in enumerate(cells)]


@pytest.mark.parametrize("separator", [",", ";", "\t", ", "])
def test_separators_of_spreadsheets(tmp_path, separator):
    rows = [["infrared", "visible"], ["a,b.png" if separator == ";" else "a.png", "day 1/ü.png"]]
    (tmp_path / "t.csv").write_text("\n".join(separator.join(row) for row in rows), encoding="utf-8-sig")
    assert read_table(tmp_path / "t.csv", needed=2) == (rows[0], [rows[1]])


def test_spaces_around_cells_do_not_count(tmp_path):
    (tmp_path / "t.csv").write_text('ir ; vis\n a b.png ; "c d.png"\n')
    assert read_table(tmp_path / "t.csv", 2) == (["ir", "vis"], [["a b.png", "c d.png"]])


def test_names_that_are_not_text_are_escaped(tmp_path):
    write_table(tmp_path / "t.csv", [[os.fsdecode(b"\xff.png")]])
    assert (tmp_path / "t.csv").read_text() == "\\udcff.png\n"


def test_a_table_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ddfm.io.tables.LARGEST", 2**10)
    (tmp_path / "t.csv").write_text("a,b\n" * 1000)
    with pytest.raises(InputError, match="larger than"):
        read_table(tmp_path / "t.csv", 2)
