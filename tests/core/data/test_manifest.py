"""Manifests: rows become pairs, and every fault is reported with its line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdm.data.manifest import ManifestError, Pair, load_pair, manifest_faults, read_manifest, write_manifest
from ppdm.data.volume import Volume, VolumeError, write_volume

HEADER = "subject,split,source,target,mask,suv_factor\n"


@pytest.fixture
def folder(tmp_path):
    """A folder with empty files a.nii to f.nii; read_manifest checks that files exist but does not open them."""
    for name in "abcdef":
        (tmp_path / f"{name}.nii").touch()
    return tmp_path


def manifest(folder, text, name="pairs.csv"):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def complaint_about(folder, text):
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest(folder, text))
    message = str(caught.value)
    assert "pairs.csv" in message
    return message


def test_rows_become_pairs(folder):
    text = HEADER + "s1,test,a.nii,./b.nii,c.nii,2.5e-4\ns2,,d.nii,e.nii,,\n"
    assert read_manifest(manifest(folder, text)) == [
        Pair("s1", "test", folder / "a.nii", folder / "b.nii", folder / "c.nii", 2.5e-4),
        Pair("s2", "train", folder / "d.nii", folder / "e.nii"),
    ]


def test_optional_columns_may_be_absent_and_columns_may_have_any_order(folder):
    assert read_manifest(manifest(folder, "target,source,split,subject\nb.nii,a.nii,val,s1\n")) == [
        Pair("s1", "val", folder / "a.nii", folder / "b.nii")
    ]


def test_a_subject_may_have_several_sessions(folder):
    text = HEADER + "s1,train,a.nii,b.nii,,\ns1,train,c.nii,d.nii,,\n"
    assert [pair.subject for pair in read_manifest(manifest(folder, text))] == ["s1", "s1"]


def test_byte_order_mark_crlf_spaces_and_blank_lines_are_tolerated(folder):
    plain = HEADER + "s1,val,a.nii,b.nii,,\n"
    office = ("\ufeff" + plain.replace(",", " , ") + "\n,,,,,\n").replace("\n", "\r\n")
    assert read_manifest(manifest(folder, office)) == read_manifest(manifest(folder, plain))


PLAIN = HEADER + "s1,val,a.nii,b.nii,,0.5\ns2,,c.nii,d.nii,,2\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", ";").replace("0.5", "0,5").replace("\n", "\r\n"),  # Excel with decimal commas
        "sep=;\n" + PLAIN.replace(",", ";"),
        "\ufeff" + PLAIN.replace(",", "\t"),
        PLAIN.replace("\n", ",,,\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace("b.nii,,", '"b.nii","",'),
    ],
)
def test_tables_of_spreadsheet_programs_are_read(folder, text):
    assert read_manifest(manifest(folder, text)) == read_manifest(manifest(folder, PLAIN, "plain.csv"))


def test_additional_columns_are_kept_and_written_again(folder):
    text = 'site,subject,split,source,target,note\nA,s1,val,a.nii,b.nii,"x, y"\n,s2,,c.nii,d.nii,\n'
    pairs = read_manifest(manifest(folder, text))
    assert pairs[0].extra == {"site": "A", "note": "x, y"}
    assert len({*pairs}) == 2  # pairs are hashable
    write_manifest(folder / "again.csv", pairs)
    assert read_manifest(folder / "again.csv") == pairs
    assert (folder / "again.csv").read_text().startswith("subject,split,source,target,site,note\ns1,val,a.nii,b.nii,A,")


def test_a_column_that_is_probably_misspelt_gives_a_warning(folder):
    text = "subject,split,source,target,suv_facter\ns1,val,a.nii,b.nii,2\n"
    with pytest.warns(UserWarning, match=r"pairs\.csv: column 'suv_facter' has no effect; is 'suv_factor' meant\?"):
        (pair,) = read_manifest(manifest(folder, text))
    assert pair.suv_factor is None


def test_a_cell_in_a_column_without_a_name_is_refused(folder):
    text = "subject,,split,source,target\ns1,x,val,a.nii,b.nii\n"
    assert "line 2: cell 'x' is in a column without a name" in complaint_about(folder, text)


def test_paths_may_contain_the_home_folder_links_and_blanks(folder, tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    (home / "my scans").mkdir()
    (home / "my scans" / "x y.nii").touch()
    (folder / "link.nii").symlink_to(home / "my scans" / "x y.nii")
    monkeypatch.setenv("HOME", str(home))
    text = "subject,split,source,target\ns1,val,~/my scans/x y.nii,b.nii\ns1,val,a.nii,link.nii\n"
    first, second = read_manifest(manifest(folder, text))
    assert first.source == home / "my scans" / "x y.nii"
    assert second.target == folder / "link.nii"


def test_absolute_paths_are_allowed_and_may_lie_outside(folder):
    inner = folder / "inner"
    inner.mkdir()
    text = f"subject,split,source,target\ns1,,{folder / 'a.nii'},{folder / 'b.nii'}\n"
    assert read_manifest(manifest(inner, text))[0].source == folder / "a.nii"


def test_relative_paths_that_leave_the_folder_are_refused(folder):
    (folder / "inner").mkdir()
    text = "subject,split,source,target\ns1,,../a.nii,x/../../b.nii\n"
    message = complaint_about(folder / "inner", text)
    assert "line 2: source ../a.nii leaves the manifest's folder; write an absolute path" in message
    assert "line 2: target x/../../b.nii leaves" in message


def test_a_path_with_dots_that_stays_inside_the_folder_is_accepted(folder):
    text = "subject,split,source,target\ns1,,x/../a.nii,..b.nii\n"
    (folder / "..b.nii").touch()
    assert read_manifest(manifest(folder, text))[0].target == folder / "..b.nii"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (",train,a.nii,b.nii,,", "line 2: subject '' cannot name a file"),
        ("../s1,train,a.nii,b.nii,,", "line 2: subject '../s1' cannot name a file"),
        ("s1,training,a.nii,b.nii,,", "line 2: split 'training' is not one of train, val, test"),
        ("s1,train,,b.nii,,", "line 2: source is empty"),
        ("s1,train,a.nii,,,", "line 2: target is empty"),
        ("s1,train,gone.nii,b.nii,,", "line 2: source gone.nii is not a file"),
        ("s1,train,.,b.nii,,", "line 2: source . is a folder without DICOM files, expected one scan"),
        ("s1,train,a.nii,b.nii,gone.nii,", "line 2: mask gone.nii is not a file"),
        ("s1,train,a.nii,x/../a.nii,,", "line 2: source and target are the same file, a.nii"),
        ("s1,train,a.nii,b.nii,,heavy", "line 2: suv_factor 'heavy' is not a positive number"),
        ("s1,train,a.nii,b.nii,,0", "line 2: suv_factor 0.0 is not a positive number"),
        ("s1,train,a.nii,b.nii,,-3", "line 2: suv_factor -3.0 is not"),
        ("s1,train,a.nii,b.nii,,nan", "line 2: suv_factor nan is not"),
        ("s1,train,a.nii,b.nii,,1e400", "line 2: suv_factor inf is not"),
        ("s1,train,a.nii,b.nii", "line 2: 4 cells, expected 6"),
        ("s1,train,a.nii,b.nii,,,x", "line 2: 7 cells, expected 6"),
        ("s1,train,sub\\a.nii,b.nii,,", "is not a file; write '/' between folders"),
        ('s1,train,"a.nii,b.nii,,', "line 2: it is not CSV"),
        (f"s1,train,{'x' * 300}.nii,b.nii,,", "is not a file"),
    ],
)
def test_a_fault_in_a_row_is_reported_with_its_line(folder, row, complaint):
    message = complaint_about(folder, HEADER + row + "\n")
    assert complaint in message
    assert "1 fault:" in message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it is empty; begin with subject,split,source,target"),
        ("\n\n", "it is empty"),
        (HEADER, "it has a header but no rows"),
        ("subject,split,source\n", "column 'target' is missing; found 'subject', 'split', 'source'"),
        ("subject|split|source|target\n", "found 'subject|split|source|target'"),
        ("Subject,split,source,target\n", "column 'Subject' must be spelt 'subject'; rename it"),
        ("subject,split,source,target,SUV factor\n", "column 'SUV factor' must be spelt 'suv_factor'"),
        ("subject,split,source,target,note,note\n", "column 'note' appears twice"),
        (b"PK\x03\x04\x14\0 [Content_Types].xml", "is a spreadsheet file (.xlsx or .ods), not CSV text; save"),
        (b"\xd0\xcf\x11\xe0" + bytes(20), "is an old Excel file (.xls), not CSV text"),
        ("subject,split,source,target\ns1,train,a.nii,b.nii\n".encode("cp1252") + b"\xe9", "not UTF-8"),
        ("subject,split,source,target,source\n", "column 'source' appears twice"),
        (HEADER.encode("utf-16"), "not UTF-8"),
        (b"subject\0,split,source,target\n", "not UTF-8"),
    ],
)
def test_a_file_that_is_not_a_valid_manifest_is_refused(folder, text, complaint):
    assert complaint in complaint_about(folder, text)


def test_missing_manifest_and_folder_are_refused(folder):
    for path in (folder / "gone.csv", folder):
        with pytest.raises(ManifestError, match="is not a file; name a CSV manifest"):
            read_manifest(path)


def test_a_subject_in_two_splits_is_refused(folder):
    text = HEADER + "s1,train,a.nii,b.nii,,\ns2,val,c.nii,d.nii,,\ns1,test,e.nii,f.nii,,\n"
    assert "line 4: subject 's1' is in test here and in train on line 2" in complaint_about(folder, text)


def test_a_volume_in_two_splits_is_refused_even_under_another_name(folder):
    (folder / "alias.nii").symlink_to(folder / "b.nii")
    text = HEADER + "s1,train,a.nii,b.nii,,\ns2,test,c.nii,alias.nii,,\n"
    assert "b.nii is in test here and in train on line 2" in complaint_about(folder, text)


def test_a_mask_may_be_shared_by_splits(folder):
    text = HEADER + "s1,train,a.nii,b.nii,f.nii,\ns2,test,c.nii,d.nii,f.nii,\n"
    assert len(read_manifest(manifest(folder, text))) == 2


def test_all_faults_are_counted_and_ten_are_shown(folder):
    message = complaint_about(folder, HEADER + "s1,dev,gone.nii,b.nii,,0\n" * 12)
    assert "pairs.csv has 24 faults:" in message
    assert message.count("line ") == 10
    assert message.endswith("and 14 more")


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_manifest_errors(tmp_path_factory, noise):
    path = manifest(tmp_path_factory.mktemp("noise"), noise)
    with pytest.raises(ManifestError):
        read_manifest(path)


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet='s1,"\n\r ./\\nan0-\u00e9', max_size=60))
def test_arbitrary_rows_raise_only_manifest_errors(tmp_path_factory, noise):
    path = manifest(tmp_path_factory.mktemp("noise"), HEADER + noise)
    with pytest.raises(ManifestError):
        read_manifest(path)


@pytest.mark.parametrize(
    "fault", [{"subject": "a/b"}, {"subject": ""}, {"split": "dev"}, {"suv_factor": 0.0}, {"suv_factor": float("inf")}]
)
def test_a_pair_refuses_invalid_fields(fault):
    with pytest.raises(ManifestError, match=next(iter(fault))):
        Pair(**{"subject": "s", "split": "val", "source": Path("a"), "target": Path("b"), **fault})


def test_load_pair_reads_both_volumes(tmp_path):
    source = Volume.from_array(np.arange(24).reshape(2, 3, 4), spacing=(1, 2, 3))
    write_volume(tmp_path / "a.nii.gz", source.data, source)
    write_volume(tmp_path / "b.nii.gz", source.data + 1, source)
    loaded = load_pair(Pair("s", "val", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"))
    assert np.array_equal(loaded[0].data + 1, loaded[1].data)
    assert loaded[1].spacing == (1, 2, 3)


def test_load_pair_refuses_grids_that_differ(tmp_path):
    for name, spacing in (("a.nii", 1.0), ("b.nii", 1.1)):
        volume = Volume.from_array(np.zeros((2, 3, 4)), spacing=(1, 1, spacing))
        write_volume(tmp_path / name, volume.data, volume)
    with pytest.raises(VolumeError, match=r"a\.nii and .*b\.nii must share one grid"):
        load_pair(Pair("s", "val", tmp_path / "a.nii", tmp_path / "b.nii"))


def test_load_pair_resamples_the_target_when_asked(tmp_path):
    for name, spacing, size in (("a.nii", 1.0, 6), ("b.nii", 0.5, 12)):
        volume = Volume.from_array(np.full((6, 6, size), 3.0), spacing=(1, 1, spacing))
        write_volume(tmp_path / name, volume.data, volume)
    pair = Pair("s", "val", tmp_path / "a.nii", tmp_path / "b.nii")
    source, target = load_pair(pair, resample=True)
    assert target.data.shape == source.data.shape
    np.testing.assert_allclose(target.data, 3, rtol=1e-6)


def test_resampling_changes_nothing_if_the_grids_are_equal(tmp_path):
    volume = Volume.from_array(np.random.default_rng(0).normal(size=(3, 4, 5)))
    for name in ("a.nii", "b.nii"):
        write_volume(tmp_path / name, volume.data, volume)
    _, target = load_pair(Pair("s", "val", tmp_path / "a.nii", tmp_path / "b.nii"), resample=True)
    assert np.array_equal(target.data, volume.data)


# All faults


def test_sound_rows_are_returned_together_with_all_faults(folder):
    text = HEADER + "s1,train,a.nii,b.nii,,\n" + "s2,dev,gone.nii,d.nii,,0\n" * 12 + "s3,val,e.nii,f.nii,,2\n"
    pairs, faults = manifest_faults(manifest(folder, text))
    assert [pair.subject for pair in pairs] == ["s1", "s3"]
    assert len(faults) == 24
    assert faults[-2:] == [
        "line 14: source gone.nii is not a file",
        "line 14: split 'dev' is not one of train, val, test",
    ]


def test_rows_before_a_csv_error_are_returned(folder):
    pairs, faults = manifest_faults(manifest(folder, HEADER + 's1,train,a.nii,b.nii,,\ns2,,"c.nii,d.nii,,\n'))
    assert [pair.subject for pair in pairs] == ["s1"]
    assert len(faults) == 1
    assert "line 3: it is not CSV" in faults[0]


def test_both_pairs_of_a_subject_in_two_splits_are_returned_with_one_fault(folder):
    pairs, faults = manifest_faults(manifest(folder, HEADER + "s1,train,a.nii,b.nii,,\ns1,test,c.nii,d.nii,,\n"))
    assert len(pairs) == 2
    assert len(faults) == 1
    assert "subject 's1' is in test here" in faults[0]


def test_a_sound_manifest_gives_its_pairs_and_no_faults(folder):
    path = manifest(folder, HEADER + "s1,train,a.nii,b.nii,,\n")
    assert manifest_faults(path) == (read_manifest(path), [])


# Writing


def test_a_written_manifest_reads_back_equal(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "g.nii"
    elsewhere.touch()
    pairs = [
        Pair("s,1", "train", folder / "a.nii", folder / "b.nii", folder / "c.nii", 1 / 3),
        Pair('s"2', "val", folder / "d.nii", elsewhere),
    ]
    write_manifest(folder / "pairs.csv", pairs)
    assert read_manifest(folder / "pairs.csv") == pairs
    lines = (folder / "pairs.csv").read_text().splitlines()
    assert lines[0] + "\n" == HEADER
    assert lines[1] == '"s,1",train,a.nii,b.nii,c.nii,0.3333333333333333'
    assert lines[2].endswith(f",d.nii,{elsewhere.as_posix()},,")


def test_optional_columns_without_values_are_not_written(folder):
    write_manifest(folder / "pairs.csv", [Pair("s1", "train", folder / "a.nii", folder / "b.nii")])
    assert (folder / "pairs.csv").read_text() == "subject,split,source,target\ns1,train,a.nii,b.nii\n"


@pytest.mark.parametrize("name", [" blank.nii", 'comma,quote".nii', "line\nfeed.nii", "..dots.nii", "é.nii"])
def test_unusual_file_names_read_back_equal(folder, name):
    (folder / name).touch()
    pairs = [Pair("s1", "train", folder / name, folder / "b.nii")]
    write_manifest(folder / "pairs.csv", pairs)
    assert read_manifest(folder / "pairs.csv") == pairs


def test_a_manifest_still_works_after_its_folder_is_moved(folder, tmp_path_factory):
    write_manifest(folder / "pairs.csv", [Pair("s1", "train", folder / "a.nii", folder / "b.nii")])
    moved = tmp_path_factory.mktemp("moved") / "set"
    folder.rename(moved)
    assert read_manifest(moved / "pairs.csv")[0].target == moved / "b.nii"


def test_a_manifest_with_relative_paths_reads_back_equal(folder, monkeypatch):
    monkeypatch.chdir(folder)
    pairs = [Pair("s1", "train", Path("a.nii"), Path("b.nii"))]
    write_manifest("pairs.csv", pairs)
    assert read_manifest("pairs.csv") == pairs


def test_dots_in_a_path_are_resolved_after_links(folder, tmp_path_factory):
    far = tmp_path_factory.mktemp("far")
    (far / "inner").mkdir()
    (far / "x.nii").touch()
    (folder / "link").symlink_to(far / "inner")
    write_manifest(folder / "pairs.csv", [Pair("s1", "train", folder / "link/../x.nii", folder / "b.nii")])
    assert read_manifest(folder / "pairs.csv")[0].source == far.resolve() / "x.nii"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "it has a header but no rows"),
        ([("s1", "train", "a", "gone")], "target gone.nii is not a file"),
        ([("s1", "train", "a", "b"), ("s1", "val", "c", "d")], "subject 's1' is in val here"),
        ([(" s1", "train", "a", "b")], "begins or ends with a blank"),
        ([("s\udcff", "train", "a", "b")], "is not Unicode"),
    ],
)
def test_pairs_that_could_not_be_read_back_are_not_written(folder, rows, said):
    old = manifest(folder, "old")
    pairs = [Pair(who, split, folder / f"{a}.nii", folder / f"{b}.nii") for who, split, a, b in rows]
    with pytest.raises(ManifestError, match=r"(?s).*" + said):
        write_manifest(old, pairs)
    assert old.read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == [*(f"{name}.nii" for name in "abcdef"), "pairs.csv"]


def test_a_place_that_cannot_be_written_is_refused(folder):
    pairs = [Pair("s1", "train", folder / "a.nii", folder / "b.nii")]
    (folder / "folder.csv").mkdir()
    for path in (folder / "gone" / "pairs.csv", folder / "a.nii" / "pairs.csv", folder / "folder.csv"):
        with pytest.raises(ManifestError, match="cannot be written"):
            write_manifest(path, pairs)
    assert not list(folder.glob(".*"))


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(
        st.text(st.characters(exclude_characters="/\0\r", exclude_categories=["Cs"]), min_size=1, max_size=20),
        min_size=2,
        max_size=2,
        unique=True,
    ),
    factor=st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False),
)
def test_any_file_names_and_suv_factors_read_back_equal(tmp_path_factory, names, factor):
    folder = tmp_path_factory.mktemp("names")
    paths = [folder / f"{name}.nii" for name in names]
    for path in paths:
        path.touch()
    pairs = [Pair("s1", "test", *paths, suv_factor=factor)]
    write_manifest(folder / "pairs.csv", pairs)
    assert read_manifest(folder / "pairs.csv") == pairs
