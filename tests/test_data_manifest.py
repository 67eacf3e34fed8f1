"""Manifests: what counts, what is reported, and one clear line, with its number, for each that cannot be used."""

from __future__ import annotations

import codecs
import csv
import datetime
import io
import json
import os
import re
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from autoft.data.folder import ImageFolderReader
from autoft.data.layout import SPLIT_NAMES
from autoft.data.manifest import ManifestReader, with_columns
from autoft.data.readers import read_labelled
from autoft.errors import DataError
from autoft.system.files import as_path
from autoft.values.dataset import Entry, Repeat


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three files that look like images to a reader, which opens none; one lies deeper."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "deep/c.PNG"):
        (folder / name).write_bytes(b"x")
    return folder


def write(folder: Path, text: str | bytes, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path):
    return ManifestReader().read(path)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def found(listing) -> list[tuple[str, str]]:
    assert all((as_path(listing.root) / as_path(entry.path)).is_file() for entry in listing.entries)
    return [(entry.path, entry.label) for entry in listing.entries]


def reasons(listing) -> list[tuple[str, str]]:
    return [(problem.path, problem.reason) for problem in listing.problems]


# ---------------------------------------------------------------- what counts


def test_images_and_labels_in_the_order_of_the_file(photos):
    listing = read(write(photos, "image,label\nb.jpg,dog\na.png,cat\ndeep/c.PNG,dog\n"))
    assert found(listing) == [("b.jpg", "dog"), ("a.png", "cat"), ("deep/c.PNG", "dog")]
    assert (listing.root, listing.classes, listing.columns) == (str(photos.resolve()), (), ("label",))
    assert {entry.split for entry in listing.entries} == {None} and not listing.problems


@pytest.mark.parametrize("name", ["image", "path", "file", "filename", "file_name", "image_path", "Image", "PATH"])
def test_names_of_the_image_column(photos, name):
    listing = read(write(photos, f"kind,{name}\ncat,a.png\n"))
    assert found(listing) == [("a.png", "cat")] and listing.columns == ("kind",)


@pytest.mark.parametrize("cut", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_what_cuts_cells_and_ends_lines(photos, cut, end, mark):
    header, first, second = f"image{cut}label{cut}split", f"a.png{cut}größe{cut}train", f"b.jpg{cut}ö{cut}"
    listing = read(write(photos, mark + end.join(("", header, first, "", "  ", second, "")).encode()))
    assert listing.entries == (Entry("a.png", "größe", "train"), Entry("b.jpg", "ö"))


def test_other_delimiters_and_quotes_within_cells(photos):
    (photos / 'odd, "name".png').write_bytes(b"x")
    listing = read(write(photos, '"image"; "label"\n"odd, ""name"".png"; "a;b, c"\na.png ; d,e\n'))
    assert found(listing) == [('odd, "name".png', "a;b, c"), ("a.png", "d,e")]


def test_separators_that_a_spreadsheet_left(photos):
    assert found(read(write(photos, ",,,\nimage,label,,\na.png,cat,,\n,,,\nb.jpg,dog,,\n"))) == [
        ("a.png", "cat"),
        ("b.jpg", "dog"),
    ]


def test_several_targets_are_one_line_of_csv(photos):
    listing = read(write(photos, 'width,image,"height, cm"\n1.5 ,a.png,2\n,b.jpg,"3,5"\n'))
    assert listing.columns == ("width", "height, cm")
    assert found(listing) == [("a.png", "1.5,2"), ("b.jpg", ',"3,5"')]


def test_an_empty_label_is_the_tasks_to_judge(photos):
    assert found(read(write(photos, "image,label\na.png,\n"))) == [("a.png", "")]


@pytest.mark.parametrize("name", sorted(SPLIT_NAMES))
def test_splits_are_written_as_folders_are(photos, name):
    listing = read(write(photos, f"image,Split,label\na.png,{name.upper()},x\nb.jpg,,x\n"))
    assert [entry.split for entry in listing.entries] == [SPLIT_NAMES[name], None] and listing.columns == ("label",)


def test_an_identity_may_be_what_is_predicted(photos):
    assert read(write(photos, "image,id\na.png,7\n")).columns == ("id",)


text = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12).map(str.strip)
rows = st.lists(st.tuples(text, text, st.sampled_from(["", "train", "val", "test"])), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    rows=rows,
    cut=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_is_written_comes_back(photos, rows, cut, end, quoting):
    names = [f"deep/{number}.png" for number in range(len(rows))]
    for name in names:
        (photos / name).write_bytes(b"x")
    content = io.StringIO()
    writer = csv.writer(content, delimiter=cut, lineterminator=end, quoting=quoting)
    writer.writerow(("first", "image", "second", "split"))
    writer.writerows((first, name, second, split) for name, (first, second, split) in zip(names, rows, strict=True))
    listing = read(write(photos, content.getvalue()))
    back = [(*next(csv.reader(io.StringIO(e.label, newline=""))), e.split or "") for e in listing.entries]
    assert back == rows and [entry.path for entry in listing.entries] == names


# ---------------------------------------------------------------- paths


def test_paths_that_stay_in_the_folder(photos, tmp_path):
    lines = [f"{photos.resolve()}/a.png,x", "deep/../b.jpg,y", "./deep//c.PNG,z"]
    listing = read(write(photos, "\n".join(["image,label", *lines])))
    assert found(listing) == [("a.png", "x"), ("b.jpg", "y"), ("deep/c.PNG", "z")]


@pytest.mark.parametrize("given", ["link", "photos"])
def test_absolute_paths_through_a_link(photos, tmp_path, given):
    (tmp_path / "link").symlink_to(photos)
    path = write(photos, f"image,label\n{tmp_path}/link/a.png,x\n{photos.resolve()}/b.jpg,y\n")
    assert found(read(tmp_path / given / path.name)) == [("a.png", "x"), ("b.jpg", "y")]


def test_a_link_to_a_manifest_moves_nothing(photos, tmp_path):
    path = write(photos, "image,label\na.png,x\n")
    (tmp_path / "link.csv").symlink_to(path)
    listing = read(tmp_path / "link.csv")
    assert found(listing) == [("a.png", "x")]
    assert listing == read(path) and listing.source == listing.manifest == str(path.resolve())


def test_a_manifest_of_the_working_folder(photos, monkeypatch):
    write(photos, "image,label\na.png,x\n")
    monkeypatch.chdir(photos)
    assert read(Path("data.csv")).root == str(photos.resolve())


@pytest.mark.parametrize("name", ["../other.png", "/etc/a.png", "..\\other.png", "deep/../../photos2/a.png", "."])
def test_an_image_outside_the_folder(photos, name):
    message = refusal(write(photos, f"image,label\na.png,x\n\n{name},y\n"))
    assert "line 4" in message and f"{name!r} lies outside" in message and "move the manifest" in message


def test_backslashes_part_folders_unless_a_name_has_one(photos):
    (photos / "deep\\b.png").write_bytes(b"x")
    listing = read(write(photos, "image,label\ndeep\\c.PNG,x\ndeep\\b.png,y\n"))
    assert found(listing) == [("deep/c.PNG", "x"), ("deep\\b.png", "y")]


def test_names_that_are_no_text_and_names_that_look_like_it(photos):
    (photos / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    (photos / r"so\xe9.png").write_bytes(b"x")
    listing = read(write(photos, "image,label\ncaf\\xe9.png,x\nso\\xe9.png,y\n"))
    assert found(listing) == [(r"caf\xe9.png", "x"), (r"so\x5cxe9.png", "y")]


ROWS = [
    {"file_name": "a.png", "label": "cat", "split": "train", "group": None},
    {"file_name": "b.jpg", "label": "dog", "group": "p"},
    {"file_name": "deep/c.PNG", "label": "cat"},
]


def as_jsonl(rows) -> bytes:
    return "\n\n".join(json.dumps(row) for row in rows).encode()


def as_parquet(rows) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


KINDS = pytest.mark.parametrize(("kind", "written"), [("jsonl", as_jsonl), ("parquet", as_parquet)])


@KINDS
def test_other_tables_say_what_a_csv_file_does(photos, kind, written):
    listing = read(write(photos, written(ROWS), f"data.{kind}"))
    assert [(one.path, one.label, one.split, one.group) for one in listing.entries] == [
        ("a.png", "cat", "train", ""),
        ("b.jpg", "dog", None, "p"),
        ("deep/c.PNG", "cat", None, ""),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("0.50"), "0.50"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (float("nan"), ""),
        (2**60, str(2**60)),
    ],
)
def test_values_that_only_parquet_has_are_text_too(photos, value, text):
    rows = [{"image": "a.png", "y": value}, {"image": "b.jpg", "y": value}]
    assert {entry.label for entry in read(write(photos, as_parquet(rows), "data.parquet")).entries} == {text}


@given(st.integers(4, 400), st.binary(min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_parquet_file_is_rows_or_one_line(photos, place, damage):
    whole = bytearray(as_parquet(ROWS))
    whole[place : place + len(damage)] = damage
    path = write(photos, bytes(whole), "data.parquet")
    try:
        read(path)
    except DataError as refused:
        assert "\n" not in str(refused) and str(path) in str(refused)


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\x1c"])
def test_what_ends_a_line_to_unicode_ends_none_here(photos, mark):
    (photos / f"x{mark}y.png").write_bytes(b"x")
    rows = json.dumps({"image": f"x{mark}y.png", "label": f"a{mark}b"}, ensure_ascii=mark == "\x1c")
    for path in (write(photos, rows, "data.jsonl"), write(photos, f"image,label\nx{mark}y.png,a{mark}b\n")):
        assert found(read(path)) == [(f"x{mark}y.png", f"a{mark}b")]


def test_a_name_that_is_not_utf_8_is_found_as_python_writes_it(photos):
    try:
        (photos / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system knows no such names")
    rows = json.dumps({"image": os.fsdecode(b"caf\xe9.png"), "label": "x"})
    assert found(read(write(photos, rows, "data.jsonl"))) == [("caf\\xe9.png", "x")]


@KINDS
@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (0.25, "0.25"), (True, "true"), (["cat", "dog"], "cat|dog"), ([], ""), (" a\nb ", "a b")],
)
def test_values_are_text_as_in_csv(photos, kind, written, value, text):
    (entry,) = read(write(photos, written([{"image": "a.png", "y": value}]), f"data.{kind}")).entries
    assert entry.label == text


@KINDS
@pytest.mark.parametrize("value", [{"bbox": [1, 2]}, b"x"])
def test_what_no_cell_can_hold_is_named(photos, kind, written, value):
    if isinstance(value, bytes) and kind == "jsonl":
        pytest.skip("JSON has no bytes")
    rows = [{"image": "a.png", "y": 1, "objects": value}]
    what = "bytes" if isinstance(value, bytes) else "an object"
    assert f"line 1: 'objects' holds {what}; " in refusal(write(photos, written(rows), f"data.{kind}"))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("data.jsonl", b'{"image": "a.png", "y": 1}\n{"image"\n', "line 2: no JSON"),
        ("data.jsonl", b'{"image": "a.png", "y": 1}\n[1]\n', "line 2: a list and no object"),
        ("data.jsonl", b"\n", "is empty"),
        ("data.jsonl", b"{}\n", "is empty"),
        ("data.jsonl", b'{"": "a.png"}\n', "line 1: the name '' says nothing"),
        (
            "data.jsonl",
            b'{"image": "a.png", "y": 1, "y": 2}\n',
            "line 1: the name 'y' says nothing, or stands there twice",
        ),
        ("data.jsonl", b'{"image": "a\\u0000.png", "y": 1}\n', "line 1: 'image' holds 'a\\x00.png', which is no text"),
        ("data.jsonl", b'{"image": "a.png", "y": "\\ud800"}\n', "line 1: 'y' holds '\\ud800', which is no text"),
        ("data.jsonl", b'{"image": "a.png", "y": [[1]]}\n', "line 1: 'y' holds a list in a list"),
        ("data.jsonl", b"[" * 100_000, "line 1: no JSON"),
        ("data.csv", b"x" * 200_000 + b"\n", "a cell is too long to be one"),
        ("data.parquet", as_parquet([{"": "a.png"}]), "no column is called image"),
        ("data.parquet", as_parquet([{"image": "a.png", "y": 1, "__index_level_0__": 3}]), "remove it"),
        ("data.jsonl", b"\xff\n", "not UTF-8; save the file as JSON lines in UTF-8"),
        ("data.parquet", b"PAR1 and no more", "cannot be read"),
        ("data.parquet", b"", "cannot be read"),
        ("data.parquet", as_parquet([{"x": "a.png"}]), "no column is called image"),
    ],
)
def test_damaged_tables_are_one_line(photos, name, content, fault):
    assert fault in refusal(write(photos, content, name))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet", "Metadata.CSV", "metadata.tsv"])
def test_metadata_in_a_folder_stands_for_it(photos, name):
    """As in Hugging Face's image folders; what it does not name is left alone."""
    content = {"csv": b"file_name,label\na.png,x\nb.jpg,y\n", "jsonl": as_jsonl(ROWS), "parquet": as_parquet(ROWS)}
    content["tsv"] = content["csv"].replace(b",", b"\t")
    path = write(photos, content[name.casefold().partition(".")[2]], name)
    listing = read_labelled(photos)
    assert (listing.manifest, listing.entries[0].path) == (str(path), "a.png")
    assert listing.remarks == (f"images and labels are those of {name} there",)
    assert read_labelled(path).entries == listing.entries
    left = [(one.path, one.reason) for one in listing.left_alone]
    assert left == ([] if len(listing.entries) == 3 else [("deep/c.PNG", f"1 image that {name} does not name")])


def class_folders(photos):
    for name in ("x", "y"):
        (photos / name).mkdir()
        (photos / name / "a.png").write_bytes(b"x")


@pytest.mark.parametrize("text", ["patient,age\n1,2\n", ""])
def test_metadata_that_names_no_images_is_any_file(photos, text):
    write(photos, text, "metadata.csv")
    class_folders(photos)
    assert read_labelled(photos).classes == ("deep", "x", "y")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("metadata.csv", b"file_name\na.png\n", "line 1: no column says what to predict"),
        ("metadata.csv", b"file_name,id,label\na.png,1,x\n", "line 1: the column 'id' would be predicted"),
        ("metadata.csv", "file_name,label\na.png,caf\xe9\n".encode("latin-1"), "line 2: not UTF-8"),
        ("metadata.jsonl", as_jsonl(ROWS) + b"\n{broken\n", "line 6: no JSON"),
        ("metadata.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_metadata_that_is_broken_does_not_make_other_labels_count(photos, name, content, fault):
    write(photos, content, name)
    class_folders(photos)
    with pytest.raises(DataError, match=re.escape(fault)) as refused:
        read_labelled(photos)
    assert str(photos / name) in str(refused.value)


def test_of_two_files_of_metadata_one_is_to_go(photos):
    write(photos, "file_name,label\na.png,x\n", "metadata.csv"), write(photos, as_jsonl(ROWS), "metadata.jsonl")
    with pytest.raises(DataError, match=r"metadata\.csv and metadata\.jsonl, which both name images; keep one"):
        read_labelled(photos)


@pytest.mark.parametrize("column", ["group", "Group"])
def test_images_of_a_group_are_told(photos, column):
    text = f"image,label,{column}\na.png,x,patient 1\nb.jpg,y,\ndeep/c.PNG,x,patient 1\n"
    listing = read(write(photos, text))
    assert [entry.group for entry in listing.entries] == ["patient 1", "", "patient 1"]
    assert listing.columns == ("label",)
    again = read(write(photos, f"{text}a.png,x,patient 2\n"))
    (repeat,) = again.repeats
    assert "says 'x' of group 'patient 2', line 2 'x' of group 'patient 1', which counts" in repeat.reason


# ---------------------------------------------------------------- lines that are not used


@pytest.mark.parametrize("url", ["https://example.org/a.png", "s3://bucket/a.png", "FILE:///a.png"])
def test_a_url_is_said_to_be_one(photos, url):
    listing = read(write(photos, f"image,label\na.png,x\n{url},y\n"))
    assert reasons(listing) == [(url, "a URL, which is not fetched: download it, and name the file (line 3)")]


def test_what_is_not_used_is_listed_with_its_line(photos):
    (photos / "empty.png").touch()
    (photos / "notes.txt").write_text("x")
    (photos / "gone.png").symlink_to("nowhere.png")
    (photos / "self.png").symlink_to("self.png")
    os.mkfifo(photos / "pipe.png")
    names = ["a.png", "", "no.png", "empty.png", "notes.txt", "gone.png", "self.png", "pipe.png", "deep", "a.png/x.png"]
    listing = read(write(photos, "\r\n".join(["image,label", *(f"{name},x" for name in names)])))
    assert found(listing) == [("a.png", "x")]
    assert reasons(listing) == [
        ("data.csv", "line 3 names no image"),
        ("no.png", "no such file (line 4)"),
        ("empty.png", "empty file (line 5)"),
        ("notes.txt", "not an image type by its extension (line 6)"),
        ("gone.png", "no such file (line 7)"),
        ("self.png", "too many levels of symbolic links (line 8)"),
        ("pipe.png", "not a regular file (line 9)"),
        ("deep", "not a regular file (line 10)"),
        ("a.png/x.png", "no such file (line 11)"),
    ]


def test_lines_are_counted_as_an_editor_does(photos):
    listing = read(write(photos, '\n\nimage,"the\nlabel"\n\na.png,"two\nlines"\n\nno.png,x\n'))
    assert found(listing) == [("a.png", "two lines")] and listing.columns == ("the label",)
    assert reasons(listing) == [("no.png", "no such file (line 9)")]


def test_an_image_that_stands_twice(photos):
    lines = ["a.png,x,", "./a.png,x,", "b.jpg,x,train", "b.jpg,x,test", "a.png,y,"]
    listing = read(write(photos, "\n".join(["image,label,split", *lines])))
    assert listing.entries == (Entry("a.png", "x"), Entry("b.jpg", "x", "train"))
    counts = "which counts; one line an image, its labels in one cell as in cat|dog"
    assert not listing.problems  # whether two texts are the same target is the task's to say
    first, second = listing.entries
    assert listing.repeats == (
        Repeat(Entry("b.jpg", "x", "test"), second, f"line 5 says 'x' in test, line 4 'x' in train, {counts}"),
        Repeat(Entry("a.png", "y"), first, f"line 6 says 'y', line 2 'x', {counts}"),
    )


def test_columns_by_name(photos):
    lines = ["image,height,note,Weight", "a.png,1.8,x,80", 'b.jpg,1.7,"y, z",70', "a.png,1.8,w,80", "a.png,1.9,x,80"]
    listing = with_columns(read(write(photos, "\n".join(lines))), ("weight", "height"))
    assert found(listing) == [("a.png", "80,1.8"), ("b.jpg", "70,1.7")] and listing.columns == ("weight", "height")
    assert [(one.entry.label, one.first.label) for one in listing.repeats] == [
        ("80,1.8", "80,1.8"),
        ("80,1.9", "80,1.8"),
    ]
    assert found(with_columns(listing, ("weight",))) == [("a.png", "80"), ("b.jpg", "70")]
    with pytest.raises(DataError, match=r"data\.csv: no column is called 'age', only 'weight', 'height'"):
        with_columns(listing, ("weight", "age"))


def test_nothing_that_can_be_used(photos):
    message = refusal(write(photos, "image,label\nimages/a.png,x\nimages/b.jpg,y\n"))
    assert "no image of 2 lines" in message and "images/a.png: no such file (line 2)" in message
    assert message.endswith(f"paths are relative to {photos.resolve()}")
    assert "has a header and nothing else" in refusal(write(photos, "image,label\n\n"))


# ---------------------------------------------------------------- files that cannot be used


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ("label", "no column is called image, path, file, filename, file_name, image_path, only 'label'"),
        ("a.png,cat", "only 'a.png', 'cat'; name the one of the paths"),
        ("image", "no column says what to predict"),
        ("image,split", "no column says what to predict"),
        (",image", "no column says what to predict"),
        ("image,path,label", "the columns 'image' and 'path' both name images"),
        ("image,label,LABEL", "two columns are called 'label'"),
        (",image,label", "the column without a name would be predicted beside 'label'; remove it"),
        ("index;image;label", "the column 'index' would be predicted beside 'label'; remove it"),
        ("image,Id,label", "the column 'Id' would be predicted"),
        ("Unnamed: 0,image,x,y", "the column 'Unnamed: 0' would be predicted beside 'x' and 'y'"),
        ("index,id,image", "the column 'index' would be predicted; remove it"),
    ],
)
def test_headers_that_say_too_little(photos, header, fault):
    message = refusal(write(photos, f"\n{header}\na.png,x,y,z\n"))
    assert "data.csv, line 2: " in message and fault in message


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("a.png", "1 cell where the header has 3; an empty cell needs its comma too"),
        ("a.png,cat,dog,train", "4 cells where the header has 3; quote a cell that holds a comma"),
        ("a.png,cat,holdout", "the split is 'holdout'; write train, val or test"),
        ('a.png,"ca"t,', "a quoted cell does not end as it should"),
        ('a.png,"cat,\nb.jpg,dog,', "a quoted cell does not end as it should"),
        ('a.png,"' + "x" * 200_000, "a cell is too long to be one, or has a quote that does not end"),
    ],
)
def test_lines_that_cannot_be_understood(photos, line, fault):
    message = refusal(write(photos, f"image,label,split\n\nb.jpg,cat,\n{line}\n"))
    assert "data.csv, line 4: " in message and fault in message


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_other_encodings(photos, encoding):
    message = refusal(write(photos, "image,label\na.png,x\nb.jpg,größe\n".encode(encoding)))
    assert f"line {3 if encoding == 'latin-1' else 1}: " in message and "save the file as CSV in UTF-8" in message


def test_files_that_are_none(photos):
    assert "is empty; it needs a header such as image,label" in refusal(write(photos, "\n \n"))
    assert "cannot be read: no such file" in refusal(photos / "no.csv")


# ---------------------------------------------------------------- effort, and the choice of a reader


def test_a_deadline_ends_it(photos):
    def stop() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        ManifestReader(stop).read(write(photos, "image,label\na.png,x\n"))


def test_twenty_thousand_lines(photos):
    for number in range(20_000):
        os.link(photos / "a.png", photos / "deep" / f"{number}.png")
    path = write(photos, "image,label\n" + "".join(f"deep/{number}.png,{number % 7}\n" for number in range(20_000)))
    assert len(read(path).entries) == 20_000


def test_the_path_says_which_reader(photos):
    for name in ("cats", "dogs.csv"):
        (photos / "folders" / name).mkdir(parents=True)
        for number in range(3):
            (photos / "folders" / name / f"{number}.png").write_bytes(b"x")
    assert read_labelled(photos / "folders") == ImageFolderReader().read(photos / "folders")
    for name, cut in (("data.csv", ","), ("data.TSV", "\t")):
        path = write(photos, f"image{cut}label\na.png{cut}x\n", name)
        assert found(read_labelled(path)) == [("a.png", "x")]


@pytest.mark.parametrize(
    ("name", "fault"),
    [("a.png", "is neither a folder nor a .csv, .jsonl, .parquet, .tsv file"), ("no.csv", "does not exist")],
)
def test_paths_without_a_reader(photos, name, fault):
    with pytest.raises(DataError, match=f"{name} {fault}; give the folder that holds the class folders, or a manifest"):
        read_labelled(photos / name)
