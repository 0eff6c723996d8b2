"""The paper figures, their tables and the HTML page, made only from records and picture data."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations

import ablated
import numpy as np
import pytest
from commands import refused, run
from evidence import ENV, FULL_3D, PPDM, TASKS, WAVELET, curve, kept, of_scans, peak, scores, timing
from PIL import Image

from ppdm import Method
from ppdm.representation import Puzzle
from ppdm_baselines import METHODS
from ppdm_bench.records import RecordError
from ppdm_bench.report.library import Library, read_library
from ppdm_bench.report.page import page
from ppdm_bench.report.paper import gallery
from ppdm_bench.report.paper_figure import MissingRecords
from ppdm_bench.report.paper_registry import PAPER_FIGURES
from ppdm_bench.report.snapshot import Snapshot, View, read_snapshot, sections, write_snapshot
from ppdm_bench.report.tables.render import Heading, Table, TableRow, escape_latex, to_csv, to_latex, to_markdown

pytestmark = pytest.mark.slow

OFF = Method.from_dict(PPDM.to_dict() | {"loss": {"p": 2, "gradient": 0.0, "mode": "off"}})


def factor_records():
    """Scores, memory and time of three factors and widths; the wider the network, the better and the costlier."""
    for factor, width in ((1, 16), (2, 16), (2, 32), (4, 16), (4, 32)):
        small = PPDM.with_network(width=width)
        method = replace(small, representation=Puzzle(factor))
        for record in scores(method, TASKS[0], [30 + width / 16 - factor] * 2, train_steps=3200 // width * factor):
            yield replace(record, options=record.options | {"budgets": {"time": 180.0}})
        yield peak(method, 64, width << 30)
        yield timing(method, 4, [width / factor])


def evidence():
    """Make records of two methods for every figure except those of picture data."""
    parts = ("params", "grads", "optimizer", "inputs", "activations", "workspace")
    for size in (64, 128):
        for method, whole in ((PPDM, 1 << 28), (FULL_3D, 1 << 31)):
            for phase in ("train", "sample"):
                yield peak(method, size, whole * size, phase=phase)
                yield from (peak(method, size, whole * size // 6, metric=part, phase=phase) for part in parts)
    yield peak(PPDM, 64, 1 << 33, kind="measured")
    for task in TASKS[:2]:
        for method, base in ((PPDM, 30), (OFF, 29), (FULL_3D, 28)):
            for steps in (1, 4):
                yield from scores(method, task, [base + steps, base + 1.5], steps=steps)
        for method, grid in ((PPDM, 1.0), (OFF, 6.0)):
            yield from scores(method, task, [grid, grid + 1], metric="seam_index_r2")
    yield from (replace(record, env=ENV) for record in ablated.everything(tasks=TASKS[:1]))
    for method, base in ((PPDM, 30), (FULL_3D, 25)):
        yield from curve(method, TASKS[0], [base, base + 1, base + 1.2], seconds=180)
    yield from factor_records()
    yield timing(PPDM, 4, [1.0, 1.1, 1.2])
    yield timing(FULL_3D, 4, [9.0, 9.1, 9.2])


def snapshot(task="mri-t1t2", shape=(16, 20, 24)):
    noise = np.random.default_rng(0)
    target = noise.uniform(0, 100, shape)
    grid = 10 * (np.indices(shape).sum(axis=0) % 2 - 0.5)
    views = [
        View("input", "input", sections(100 - target, (8, 10, 12))),
        View("target", "target", sections(target, (8, 10, 12))),
    ]
    for method, error in ((PPDM, 0 * grid), (OFF, grid)):
        volume = target + error + noise.normal(size=shape)
        spectra = [
            np.abs(np.fft.rfft(volume - target, axis=a)).mean(axis=tuple({0, 1, 2} - {a})) ** 2 for a in range(3)
        ]
        views.append(
            View(
                "prediction",
                f"ppdm {method.loss.mode}",
                sections(volume, (8, 10, 12)),
                spectra,
                "c0ffee",
                4,
                method.to_dict(),
            )
        )
    return Snapshot(task, "test-000", (1.0, 1.0, 1.5), shape, "", views)


def windows(snapshot):
    """Return the grey-scale windows of the gallery's pictures, without those of errors."""
    figure = gallery._figure([snapshot], {}, "double")
    images = [image for axes in figure.axes for image in axes.images]
    return [image.get_clim() for image in images if image.cmap.name == "gray"]


@pytest.mark.parametrize(("unit", "own"), [("", 3), ("HU", 0)])
def test_ct_is_shown_in_two_windows(unit, own):
    whole = snapshot()
    views = [replace(view, unit=unit if view.role == "input" else "") for view in whole.views]
    found = windows(replace(whole, unit="HU", views=views))
    planes, volumes = 3, 4 if unit else 3  # an MR input has one picture per plane, with its own window
    for window in ((-160, 240), (-500, 1300)):
        assert found.count(window) == planes * volumes
    assert len(found) == 2 * planes * volumes + own
    assert (-160, 240) not in windows(whole)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with records, picture data, and everything that the command makes from them."""
    place = tmp_path_factory.mktemp("figures")
    kept(place / "set", evidence())
    (place / "set" / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    write_snapshot(snapshot(), place / "set" / "snapshot.npz")
    code, out, err = run("figures", place / "set", "--out", place / "once", "--html", "--column", "single")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == len(list((place / "once").iterdir()))
    return place


def test_every_figure_has_a_table_and_a_caption(folder):
    for exhibit in PAPER_FIGURES:
        (column,) = exhibit.widths(["single"])
        with Image.open(folder / "once" / f"{exhibit.name}-{column}.png") as picture:
            assert picture.width == {"single": 3.5, "double": 7.16}[column] * 300
        pdf = (folder / "once" / f"{exhibit.name}-{column}.pdf").read_bytes()
        assert b"/Type3" not in pdf
        assert b"CreationDate" not in pdf
        header = (folder / "once" / f"{exhibit.name}.csv").read_text().splitlines()[0]
        assert header.endswith(",records")
        caption = (folder / "once" / f"{exhibit.name}.caption.md").read_text()
        assert caption.startswith(f"**{exhibit.title}.** ")
        assert "0123456789" in caption or "picture data" in caption
    assert "2 subjects of test" in (folder / "once" / "quality-evaluations.caption.md").read_text()


def test_every_figure_can_be_two_columns_wide(folder):
    library = read_library([folder / "set"])
    for exhibit in PAPER_FIGURES:
        assert exhibit.show(library).draw("double").get_figwidth() == 7.16


_AGAIN = """
import sys
from pathlib import Path
from ppdm_bench.report.figures import style
from ppdm_bench.report.paper_figure import write_paper_figure
from ppdm_bench.report.library import read_library
from ppdm_bench.report.page import page
from ppdm_bench.report.paper_registry import PAPER_FIGURES

source, folder = map(Path, sys.argv[1:3])
library = read_library([source])
shown = [(e.name, e.title, e.show(library), b"") for e in PAPER_FIGURES]
rendered = style._rendered


def without_pdf(figure, kind):
    return rendered(figure, kind) if kind == "png" else b""


for exhibit, (_, _, made, _) in zip(PAPER_FIGURES, shown):
    style._rendered = rendered if exhibit.name in sys.argv[3:] else without_pdf
    write_paper_figure(exhibit, made, folder, ["single"])
(folder / "page.html").write_text(page(library, shown, []))
assert "torch" not in sys.modules
"""


def test_the_same_records_give_the_same_bytes_without_torch(folder):
    """A new process with another hash seed writes every figure and the page, but the PDF of two figures only."""
    with_pdf = ["seam-index", "gallery"]
    words = [sys.executable, "-c", _AGAIN, str(folder / "set"), str(folder / "twice"), *with_pdf]
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run(words, check=True, env=env)
    again = {path.name: path.read_bytes() for path in (folder / "twice").iterdir() if path.name != "page.html"}
    assert len(again) == len(PAPER_FIGURES) * 6
    compared = {name: content for name, content in again.items() if content}
    assert len(again) - len(compared) == len(PAPER_FIGURES) - len(with_pdf)
    for name, content in compared.items():
        assert (folder / "once" / name).read_bytes() == content, name
    library = read_library([folder / "set"])
    shown = [(e.name, e.title, e.show(library), b"") for e in PAPER_FIGURES]
    assert page(library, shown, []) == (folder / "twice" / "page.html").read_text()


class _Page(HTMLParser):
    """Collects open tags, ids, links and resources of a page."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.resources = [], [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.resources += [found["src"]] if "src" in found else []
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_its_links_lead_to_records(folder):
    found = _Page()
    text = (folder / "once" / "report.html").read_text()
    found.feed(text)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert len(found.links) > 20
    assert all(source.startswith("data:image/png;base64,") for source in found.resources)
    assert len(found.resources) == len(PAPER_FIGURES)
    assert not re.search(r"https?://", text)
    assert "set/records.jsonl#" in text


@pytest.mark.usefixtures("unrendered")
def test_missing_records_are_reported_and_the_other_figures_are_drawn(tmp_path):
    kept(tmp_path / "set", [r for r in evidence() if r.command == "memory"][:40])
    code, out, err = run("figures", tmp_path / "set", "--out", tmp_path / "out", "--column", "double")
    assert code == 0
    assert "memory-resolution-double.pdf" in out
    for name, need in (
        ("quality-seconds", "quality of trained methods"),
        ("gallery", "picture data"),
        ("seam-index", "ablate"),
    ):
        assert re.search(rf"not drawn: {name}: it needs .*{need}", err)
    assert not list((tmp_path / "out").glob("gallery*"))


def test_every_figure_without_records_names_a_command_to_run():
    for exhibit in PAPER_FIGURES:
        with pytest.raises(MissingRecords, match="ppdm-bench"):
            exhibit.show(Library(()))


def test_absent_empty_and_corrupt_inputs_are_refused(tmp_path):
    assert "does not exist" in refused(1, "figures", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert "no record" in refused(1, "figures", tmp_path, "--out", tmp_path / "out")
    (tmp_path / "snapshot.npz").write_bytes(b"PK\x03\x04 nonsense")
    assert "no picture data" in refused(1, "figures", tmp_path, "--out", tmp_path / "out")


def test_a_record_in_two_files_counts_once(tmp_path):
    records = scores(PPDM, TASKS[0], [1.0, 2.0])
    kept(tmp_path / "a", records)
    kept(tmp_path / "b", records)
    library = read_library([tmp_path])
    assert len(library.records) == 2
    assert library.reference(library.records[0]).endswith(f"/a/records.jsonl#{records[0].config_id}")


def test_picture_data_is_written_with_the_same_bytes_and_read_back(tmp_path):
    whole = snapshot()
    first = write_snapshot(whole, tmp_path / "a.npz").read_bytes()
    assert write_snapshot(whole, tmp_path / "b.npz").read_bytes() == first
    back = read_snapshot(tmp_path / "a.npz")
    assert (back.task, back.subject, back.spacing, back.shape) == (
        whole.task,
        whole.subject,
        whole.spacing,
        whole.shape,
    )
    for one, other in zip(back.views, whole.views, strict=True):
        assert (one.role, one.label, one.steps, one.design) == (other.role, other.label, other.steps, other.design)
        for plane, picture in other.sections.items():
            assert np.abs(one.sections[plane] - picture).max() <= np.ptp(picture) / 65535
        for spectrum, wanted in zip(one.spectra, other.spectra, strict=True):
            np.testing.assert_allclose(spectrum, wanted, rtol=1e-6)


def test_a_pickle_in_picture_data_is_refused(tmp_path):
    np.savez(tmp_path / "snapshot.npz", about=np.array([object()], dtype=object))
    with pytest.raises(RecordError, match="no picture data"):
        read_snapshot(tmp_path / "snapshot.npz")


def test_tables_escape_the_special_characters_of_their_format():
    table = Table([Heading("a_b", "a_b, %"), Heading("c", "c", number=True)], [TableRow(("x|y & z_1", None), ("f#1",))])
    assert to_csv(table) == "a_b,c,records\nx|y & z_1,,f#1\n"
    assert to_markdown(table).splitlines()[-1] == "| x\\|y & z_1 | – |"
    assert r"x\textbar{}y \& z\_1 & -- \\" in to_latex(table)
    assert r"a\_b, \%" in to_latex(table)


def test_a_negative_number_gets_a_minus_sign_and_a_name_keeps_its_hyphen():
    table = Table([Heading("a", "a"), Heading("b", "b", "{:+.1f}".format, number=True)], [TableRow(("-x", -2.5))])
    assert to_csv(table).splitlines()[-1] == "-x,-2.5,"
    assert to_markdown(table).splitlines()[-1] == "| -x | −2.5 |"
    assert r"-x & $-$2.5 \\" in to_latex(table)


def test_a_latex_table_longer_than_a_page_can_break_across_pages():
    def table(rows):
        return to_latex(Table([Heading("a", "name")], [TableRow((str(row),)) for row in range(rows)]))

    short, long = table(50).splitlines(), table(51).splitlines()
    assert short[1] == r"\begin{tabular}{@{}l@{}}"
    assert short[-1] == r"\end{tabular}"
    assert long[:3] == [r"% \usepackage{booktabs}", r"% \usepackage{longtable}", r"\begin{longtable}{@{}l@{}}"]
    assert long[3:7] == [r"\toprule", r"name \\", r"\midrule", r"\endhead"]
    assert long[-1] == r"\end{longtable}"


def test_latex_replaces_special_characters_or_names_their_code_point():
    assert escape_latex("64³ ±5 % − a→b \\ {x} ~ é ✓") == (
        r"64$^3$ $\pm$5 \% $-$ a$\rightarrow$b \textbackslash{} \{x\} \textasciitilde{} e [U+2713]"
    )


def test_a_row_with_the_wrong_number_of_cells_is_refused():
    with pytest.raises(ValueError, match="2 cells under 1 headings"):
        Table([Heading("a", "a")], [TableRow((1, 2))])


def test_published_peaks_are_grouped_by_whether_gpu_and_release_are_stated(tmp_path):
    stated = replace(
        peak(PPDM, 64, 1 << 30, kind="published"), source="one, a page", env={"gpu": "A", "torch": "2.9.0"}
    )
    unstated = replace(stated, config_id="other", source="two", env={"gpu": "not stated", "torch": "2.9.0"})
    found = [replace(stated, source=f"source {n}", config_id=f"{n}") for n in range(9)] + [unstated]
    predicted = [replace(r, kind="predicted", source="", command="", value=r.value + 1) for r in found]
    exhibit = next(one for one in PAPER_FIGURES if one.name == "prediction")
    shown = exhibit.show(Library((*found, *predicted)))
    [legend] = shown.draw("double").legends
    labels = [text.get_text().partition(" (")[0] for text in legend.get_texts()]
    groups = ["published, GPU and release stated", "published, GPU and release partly unstated"]
    assert labels == [*groups, "bar: rounding of the published value"]
    assert len({line.cells[7] for line in shown.table.rows}) == 10  # the table names every source


def exhibit(name, records, snapshots=(), places=None):
    shown = next(one for one in PAPER_FIGURES if one.name == name).show(
        Library(tuple(records), tuple(snapshots), places or {})
    )
    return shown, shown.draw("double")


def labels(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


def test_a_method_is_shown_with_the_memory_of_its_largest_phase():
    records = [r for method in (PPDM, FULL_3D) for r in scores(method, TASKS[0], [30.0, 31.0])]
    records += [peak(PPDM, 64, 1 << 30), peak(FULL_3D, 64, 4 << 30)]
    records += [peak(PPDM, 64, 6 << 30, phase="autoencoder_train"), peak(FULL_3D, 64, 2 << 30, phase="sample")]
    shown, figure = exhibit("quality-memory", records)
    columns = [heading.key for heading in shown.table.headings]
    rows = [dict(zip(columns, line.cells, strict=True)) for line in shown.table.rows]
    assert [(row["peak_bytes"], row["phase"]) for row in rows] == [(6 << 30, "autoencoder_train"), (4 << 30, "train")]
    assert "largest peak over all phases" in shown.about
    (axes,) = figure.axes
    assert labels(axes) == ["ppdm r=2", "ddpm3d"]
    assert all(line.get_markerfacecolor() == "white" for line in axes.lines if line.get_marker() != "None")


@pytest.mark.parametrize("complete", [True, False])
def test_points_use_the_memory_of_their_own_network_if_all_have_one(complete):
    small = [method.with_network(width=16) for method in (PPDM, FULL_3D)]
    records = [r for method in small for r in scores(method, TASKS[0], [30.0, 31.0])]
    records += [peak(PPDM, 64, 8 << 30), peak(FULL_3D, 64, 32 << 30)]
    records += [peak(method, 64, size << 30) for method, size in zip(small[: 1 + complete], (2, 9), strict=False)]
    shown, _ = exhibit("quality-memory", records)
    at = [heading.key for heading in shown.table.headings].index("peak_bytes")
    assert [line.cells[at] for line in shown.table.rows] == ([2 << 30, 9 << 30] if complete else [8 << 30, 32 << 30])


def test_quality_against_memory_uses_the_best_number_of_evaluations():
    records = [r for steps, gain in ((1, 5), (2, 7), (4, 6)) for r in scores(PPDM, TASKS[0], [gain] * 2, steps=steps)]
    shown, _ = exhibit("quality-memory", [*records, peak(PPDM, 64, 1 << 30)])
    at = [heading.key for heading in shown.table.headings].index("evaluations")
    assert [line.cells[at] for line in shown.table.rows] == [2]


def test_factors_and_widths_are_shown_beside_the_cost_of_their_own_networks():
    other = scores(PPDM.with_network(multipliers=(1, 2)), TASKS[0], [40.0, 41.0])  # another design is left out
    shown, figure = exhibit("factors", [*factor_records(), *other])
    columns = ("factor", "width", "train_steps", "psnr", "peak_bytes", "volume_seconds")
    places = [[heading.key for heading in shown.table.headings].index(name) for name in columns]
    assert [tuple(line.cells[place] for place in places) for line in shown.table.rows] == [
        ("1", 16, 200, 30.0, 16 << 30, 16.0),
        ("2", 16, 400, 29.0, 16 << 30, 8.0),
        ("2", 32, 200, 30.0, 32 << 30, 16.0),
        ("4", 16, 800, 27.0, 16 << 30, 4.0),
        ("4", 32, 400, 28.0, 32 << 30, 8.0),
    ]
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "largest peak at 64³ (GiB)",
        "time per volume, cpu, None threads (s)",
    ]
    frontiers = [axes.lines[0].get_xydata().tolist() for axes in figure.axes]
    assert frontiers == [[[16, 30]], [[4, 27], [8, 29], [16, 30]]]
    faces = [
        [line.get_markerfacecolor() == "white" for line in axes.lines if line.get_marker() != "None"]
        for axes in figure.axes
    ]
    assert [set(found) for found in faces] == [{True}, {False}]  # memory is predicted here, and time is measured


def test_factors_of_one_width_are_no_figure():
    one_width = [r for r in factor_records() if r.metric != "psnr" or r.options["resolved"]["network"]["width"] == 16]
    with pytest.raises(MissingRecords, match="several puzzle factors and widths"):
        exhibit("factors", one_width)
    costless = [r for r in factor_records() if r.metric != "volume_seconds"]
    with pytest.raises(MissingRecords, match="memory and time per volume of the networks"):
        exhibit("factors", costless)


def test_the_resolution_figure_has_one_width_and_its_table_has_all_widths():
    wide = [peak(PPDM.with_network(width=width), size, size << 20) for width in (16, 64) for size in (32, 64)]
    shown, _ = exhibit("memory-resolution", [*wide, peak(PPDM, 96, 96 << 20)])
    assert "32³, 64³, 96³ voxels" in shown.about
    assert len(shown.table.rows) == 5
    assert "width 64" in shown.about


def test_only_the_first_method_is_drawn_against_resolution_with_all_variants():
    control = METHODS["regression"]
    records = [
        peak(method.with_factor(factor), size, factor * (size << 20))
        for method in (PPDM, control)
        for factor in (2, 4)
        for size in (64, 128)
    ]
    shown, figure = exhibit("memory-resolution", [*records, *(peak(FULL_3D, size, size << 24) for size in (64, 128))])
    assert set(labels(figure.axes[0])) >= {"ppdm r=2", "ppdm r=4", "regression r=2", "ddpm3d"}
    assert "regression r=4" not in labels(figure.axes[0])
    assert "Of regression, only the first variant is drawn" in shown.about
    assert len(shown.table.rows) == 10


def test_each_task_has_a_panel_with_a_curve_per_method_and_representation():
    records = [
        record
        for task in TASKS[:2]
        for method in (PPDM, OFF, FULL_3D)
        for steps in (1, 4)
        for record in scores(method, task, [30.0 + steps, 31.0], steps=steps)
    ]
    single = [r for steps in (1, 4) for r in scores(PPDM, TASKS[2], [20.0, 21.0], steps=steps)]
    shown, figure = exhibit("quality-evaluations", [*records, *single])
    assert [axes.get_title().split(",")[0] for axes in figure.axes] == list(TASKS[:2])
    assert [labels(axes) for axes in figure.axes] == [["ppdm r=2", "ddpm3d"]] * 2
    assert len(shown.table.rows) == 14  # the table has all methods and tasks
    assert "2 of 3" in shown.about


def test_seams_are_drawn_by_border_ratio_if_recorded_else_by_seam_index():
    index, ratio = ([task, f"{metric}_r2"] for task, metric in zip(TASKS, ("seam_index", "border_ratio"), strict=False))
    records = [
        record
        for task, metric in (index, ratio, [TASKS[1], "seam_index_r2"])
        for method, values in ((OFF, [5, 6]), (PPDM, [-2, -1]))
        for record in scores(method, task, values, metric=metric)
    ]
    for wanted, label in ((ratio[1], "border ratio (dB)"), (index[1], "seam index (dB)")):
        shown, figure = exhibit("seam-index", [r for r in records if wanted == ratio[1] or r.metric == wanted])
        assert {axes.get_ylabel() for axes in figure.axes} == {label}
        assert all(axes.get_ylim()[0] < -2 and axes.get_ylim()[1] > 6 for axes in figure.axes)
        assert {line.cells[4] for line in shown.table.rows} == {wanted}
        assert label.split(" (")[0].capitalize() in shown.about


def test_seams_of_a_pair_are_shown_once_at_the_most_evaluations():
    records = [
        record
        for task in TASKS[:2]
        for steps in (1, 10, 4)
        for method in (OFF, PPDM)
        for record in scores(method, task, [steps, steps + 1], metric="seam_index_r2", steps=steps)
    ]
    shown, figure = exhibit("seam-index", records)
    at = [heading.key for heading in shown.table.headings].index("evaluations")
    assert [(line.cells[0], line.cells[at]) for line in shown.table.rows] == [(task, 10) for task in TASKS[:2]]
    assert len(figure.axes) == 2


def test_captions_distinguish_phantoms_from_own_data():
    runs = [r for method in (PPDM, FULL_3D) for n in (1, 4) for r in scores(method, TASKS[0], [30.0, 31.0], steps=n)]
    first, *others = of_scans(runs)
    grids = [
        [*scores(OFF, name, [5, 6], metric="seam_index_r2"), *scores(PPDM, name, [1, 2], metric="seam_index_r2")]
        for name in (TASKS[0], "")
    ]
    for name, records, own, extra in (
        (
            "quality-evaluations",
            runs,
            [replace(first, shape=(8, 9, 9)), *others],
            ", 1 seed, 100 training steps, width 64",
        ),
        ("seam-index", grids[0], of_scans(grids[1]), ""),
    ):
        size = "several sizes" if extra else "32×32×32"
        theirs = f"Phantoms: {TASKS[0]}, 2 subjects of test, 32×32×32{extra}"
        ours = f"Own data: mine, 2 subjects of test, {size}{extra}"
        assert f"{theirs}. {ours}" in exhibit(name, [*records, *own])[0].about
        only = exhibit(name, own)[0].about
        assert ours in only
        assert "hantom" not in only
    ablation = list(ablated.everything(tasks=("pairs",)))
    note = " The data are synthetic phantoms: they show a direction, not a proof."
    assert note in exhibit("ablation", ablation)[0].about
    scans = of_scans(ablation, "pairs")
    assert "hantom" not in exhibit("ablation", scans)[0].about
    mixed = [*ablated.everything(tasks=TASKS[:1]), *scans]
    assert note.replace("phantoms", f"phantoms ({TASKS[0]})") in exhibit("ablation", mixed)[0].about


def test_times_measured_on_one_task_are_used_only_for_that_task():
    records = [r for method in (PPDM, FULL_3D) for task in TASKS[:2] for r in scores(method, task, [30.0, 31.0])]
    timed = [timing(method, 4, [seconds]) for method, seconds in ((PPDM, 1.0), (FULL_3D, 3.0))]
    about = records[0].options
    timed = [replace(r, shape=(), task=TASKS[0], options=about | r.options) for r in timed]
    shown, figure = exhibit("quality-seconds", [*records, *timed])
    assert {line.cells[0] for line in shown.table.rows} == {TASKS[0]}
    assert [axes.get_xlabel() for axes in figure.axes] == ["time per volume (s)"]


def test_times_are_of_the_device_with_the_most_and_predicted_ones_are_hollow():
    records = [r for method in (PPDM, FULL_3D) for r in scores(method, TASKS[0], [30.0, 31.0])]
    here = timing(PPDM, 4, [9.0])
    card = [
        replace(timing(method, 4, [1.0]), kind="predicted", env={"target_gpu": "A100"}) for method in (PPDM, FULL_3D)
    ]
    other = timing(PPDM.with_network(width=16), 4, [5.0])  # a network without scores
    shown, figure = exhibit("quality-seconds", [*records, *card, here, other])
    assert "predicted time of one translation of 64×64×64 voxels (A100)" in shown.about
    (axes,) = figure.axes
    assert [line.get_markerfacecolor() for line in axes.lines if line.get_marker() != "None"] == ["white"] * 2
    (axes,) = exhibit("quality-seconds", [*records, card[0], here])[1].axes
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() != "None"] == [9]  # measured comes first


def test_overlapping_curves_are_dashed_and_each_has_its_label():
    records = [peak(m, size, (1 << 24) * size) for m in (PPDM, WAVELET) for size in (64, 128)]
    records += [peak(FULL_3D, size, (1 << 27) * size) for size in (64, 128)]
    _, figure = exhibit("memory-resolution", [*records, *(replace(r, phase="sample") for r in records)])
    axes = figure.axes[0]
    assert {"ppdm r=2", "wavelet", "ddpm3d"} <= set(labels(axes))
    lines = [line for line in axes.lines if line.get_marker() != "None"]
    assert [line.get_linestyle() for line in lines] == ["--", "--", "-"]
    assert lines[0].get_markersize() > lines[1].get_markersize()


@pytest.mark.parametrize(("scale", "expected"), [(1, ["20", "", "", "80"]), (1500, ["", "100000"])])
def test_tick_labels_of_a_narrow_colour_bar_do_not_touch(scale, expected):
    whole = snapshot()
    views = [
        replace(view, sections={plane: scale * picture for plane, picture in view.sections.items()})
        for view in whole.views
    ]
    figure = gallery.show(Library((), (replace(whole, views=views),), {})).draw("single")
    (bar,) = [axes for cell in figure.axes if "target (a.u.)" in labels(cell) for axes in cell.child_axes]
    low, high = bar.get_xlim()
    ticks = zip(bar.get_xticks(), bar.get_xticklabels(), strict=True)
    assert [label.get_text() for value, label in ticks if low <= value <= high] == expected


@pytest.mark.parametrize(("column", "planes", "words"), [("double", 2, "90 steps, "), ("single", 1, "")])
def test_many_methods_are_shown_in_two_blocks_without_overlap(column, planes, words):
    whole = snapshot()
    *others, first, _ = whole.views
    predictions = [replace(first, label=f"method{n}", config_id=f"{n}") for n in range(12)]
    records = [
        replace(r, config_id=view.config_id)
        for view in predictions
        for r in scores(PPDM, "mri-t1t2", [17.25], train_steps=90)
    ]
    places = {id(record): "/records.jsonl" for record in records}
    shown = gallery.show(Library(tuple(records), (replace(whole, views=[*others, *predictions]),), places))
    figure = shown.draw(column)
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == (2 + 2 * 12) * planes
    boxes = [axes.get_window_extent() for axes in pictures]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert {f"method{n}, {words}17.2 dB" for n in range(12)} < {text.get_text() for text in figure.texts}


def test_pictures_have_scores_directions_and_colour_bars():
    whole = snapshot()
    records = [replace(r, config_id="c0ffee") for r in scores(PPDM, "mri-t1t2", [17.25], train_steps=90)]
    records += [
        replace(r, method="input", config_id="", options={}, steps=None) for r in scores(PPDM, "mri-t1t2", [18.5])
    ]
    places = {id(record): "/records.jsonl" for record in records}
    shown, figure = exhibit("gallery", records, [whole], places)
    words = [text for axes in figure.axes for text in labels(axes)]
    assert {"90 steps\n17.2 dB", "18.5 dB"} <= set(words)
    assert set("RLAPSI") <= set(words)
    assert "lower PSNR than the input: ppdm" in shown.about
    assert {"error (a.u.)", "target (a.u.)"} <= set(words)
    _, figure = exhibit("grid-artefact", records, [whole], places)
    assert "prediction − target (a.u.)" in [axes.get_ylabel() for axes in figure.axes]
    assert {"R", "L", "A", "P"} <= {text for axes in figure.axes for text in labels(axes)}
