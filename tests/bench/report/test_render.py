"""The renderer of tables: text that fits a terminal, chosen columns, LaTeX for a paper, and notes on shown columns."""

import pytest

from ppdm_bench.report.tables.render import Heading, Page, Table, TableRow, TextCell, to_csv, to_latex, to_text


def table(**more):
    headings = [
        Heading("method", "method"),
        Heading("kind", "kind"),
        Heading("peak", "peak GiB", "{:.2f}".format, number=True, best="min", note="GiB: 2³⁰ bytes."),
        Heading("ratio", "ratio to the reference", "{:.1f}×".format, number=True, rank=1, note="Ratio: to full."),
        Heading("reserved", "reserved GiB", "{:.2f}".format, number=True, rank=2),
    ]
    lines = [TableRow(("full", "predicted", 8.0, 1.0, 9.5)), TableRow(("puzzle", "predicted", 2.0, 0.25, None))]
    return Table(headings, lines, **more)


def lengths(text):
    return [len(line) for line in text.splitlines()]


def test_with_enough_width_every_column_is_shown_in_one_line_per_row():
    assert to_text(table()).splitlines() == [
        "method  kind       peak GiB  ratio to the reference  reserved GiB",
        "------  ---------  --------  ----------------------  ------------",
        "full    predicted      8.00                    1.0×          9.50",
        "puzzle  predicted      2.00                    0.2×             –",
    ]


def test_headings_are_wrapped_before_columns_are_left_out():
    text = Page([table()]).to_text(width=50)
    assert "reserved" in text
    assert "Not shown" not in text
    assert max(lengths(text)) <= 50


def test_columns_are_left_out_by_rank_with_their_values_and_notes():
    text = Page([table()]).to_text(width=30)
    assert [line.split() for line in text.strip().splitlines()] == [
        ["method", "kind", "peak", "GiB"],
        ["------", "---------", "--------"],
        ["full", "predicted", "8.00"],
        ["puzzle", "predicted", "2.00"],
        [],
        ["GiB:", "2³⁰", "bytes."],
        ["Not", "shown:", "ratio", "to", "the", "reference,", "reserved", "GiB", "(--columns", "chooses)."],
    ]


def test_long_text_is_wrapped_and_numbers_are_not():
    number = Heading("n", "n", number=True)
    wide = Table([Heading("a", "a"), number], [TableRow(("many words of a reason " * 9, 123456789012))])
    text = to_text(wide, width=60)
    assert max(lengths(text)) <= 60
    assert "123456789012" in text


@pytest.mark.parametrize("name", ["reserved", "reserved GiB", "RESERVED gib"])
def test_chosen_columns_are_shown_after_the_first_column(name):
    text = Page([table()]).to_text([name])
    assert text.split()[:3] == ["method", "reserved", "GiB"]
    assert "peak" not in text
    assert "Ratio: to full." not in text


def test_a_column_that_does_not_exist_is_reported_and_the_table_is_shown():
    text = Page([table()]).to_text(["nothing"])
    assert "No column is called nothing; there are: method, kind, peak GiB" in text
    assert "8.00" in text


def test_latex_has_the_best_in_bold_and_states_constant_columns_once():
    latex = to_latex(table())
    assert r"puzzle & \textbf{2.00}" in latex
    assert r"full & 8.00" in latex
    assert "% in all rows: kind predicted" in latex
    assert latex.count("predicted") == 1
    assert "reserved" not in latex  # a column of rank 2


def test_the_best_value_is_marked_in_each_group_of_comparable_rows():
    headings = [Heading("task", "task"), Heading("psnr", "PSNR dB ↑", number=True), Heading("x", "x")]
    values = [("mri", 20), ("mri", 30), ("pet", 40), ("pet", 35), ("ct", 10)]
    latex = to_latex(Table(headings, [TableRow((*value, n)) for n, value in enumerate(values)], within=["task"]))
    assert [n for n in (20, 30, 40, 35, 10) if rf"\textbf{{{n}}}" in latex] == [30, 40]


def test_a_text_cell_has_its_text_in_the_terminal_and_its_value_in_csv():
    one = Table(
        [Heading("peak", "peak GiB", "{:.1f}".format, number=True)], [TableRow((TextCell(155.0, "155.0 OOM"),))]
    )
    assert to_csv(one) == "peak,records\n155,\n"
    assert "155.0 OOM" in to_text(one)


def test_a_table_without_rows_can_be_rendered():
    empty = Table(table().headings, [])
    assert empty.without_empty() == empty
    assert to_text(empty).split()[0] == "method"
    assert r"\bottomrule" in to_latex(empty)
