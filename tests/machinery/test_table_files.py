"""Files of tables as people have them: read where only one reading makes sense, else the cause and the way out."""

import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from foldwise.data.problems import TableError
from foldwise.data.table import Columns, Table, read_table

FRAME = pd.DataFrame(
    {"id": ["007", "08", "9"], "image": ["images/a.png", "images/b.png", "images/c.png"], "label": ["é", "no", "é"]}
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "a=b (1)"
    (folder / "images").mkdir(parents=True)
    for name in "abcdef":
        (folder / "images" / f"{name}.png").touch()
    return folder


def read(path: Path, columns: Columns | None = None, task: str = "multiclass", **options) -> Table:
    return read_table(path, task, path.parent, columns or Columns(), **options)


def problems(path: Path, columns: Columns | None = None, task: str = "multiclass", **options) -> list[str]:
    with pytest.raises(TableError) as error:
        read(path, columns, task, **options)
    return error.value.problems


def is_frame(table: Table) -> bool:
    labels = [table.classes[number] for number in table.target.argmax(axis=1)]
    return table.frame[["id", "image"]].equals(FRAME[["id", "image"]]) and labels == FRAME["label"].tolist()


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.TXT"])
def test_separators_line_ends_and_byte_order_marks(root, separator, encoding, ending, name):
    text = FRAME.to_csv(sep=separator, index=False, lineterminator=ending, quoting=1)
    (root / name).write_bytes(text.encode(encoding))
    assert is_frame(read(root / name))


def test_an_index_that_pandas_wrote(root):
    for frame, index in ((FRAME, True), (FRAME.set_index("id"), True), (FRAME, False)):
        frame.to_csv(root / "t.csv", index=index)
        assert is_frame(read(root / "t.csv"))
        frame.to_parquet(root / "t.parquet", index=index or None)
        assert is_frame(read(root / "t.parquet"))
        assert "" not in read(root / "t.csv").frame
    unnamed = FRAME.set_index("id").rename_axis(None)
    unnamed.to_csv(root / "t.csv")
    unnamed.to_parquet(root / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        (problem,) = problems(root / name)
        assert "there is no column 'id'" in problem and "write id over the column that has no name" in problem
    FRAME.set_index(["id", "label"]).to_parquet(root / "t.parquet")
    assert is_frame(read(root / "t.parquet"))


def test_ends_of_spreadsheets(root):
    (root / "t.csv").write_text(" id,image ,label,,\n007,images/a.png,é,,\n08,images/b.png,no,,\n9,images/c.png,é,,\n")
    assert is_frame(read(root / "t.csv"))
    (root / "t.csv").write_text("id,image,label,,\n7,images/a.png,é,x,y\n")
    assert problems(root / "t.csv") == ["the columns 4, 5 have no name in the header: name them, or delete them"]


def run_command_of(problem: str) -> None:
    words = shlex.split(problem.splitlines()[1])
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16"])
def test_another_encoding_is_rewritten_by_the_printed_command(root, encoding):
    (root / "t.csv").write_bytes(FRAME.to_csv(sep=";", index=False).encode(encoding))
    (problem,) = problems(root / "t.csv")
    assert "UTF-16" in problem if encoding == "utf-16" else "line 2 is not UTF-8" in problem and "'007;" in problem
    run_command_of(problem)
    assert is_frame(read(root / "t-utf8.csv"))


@pytest.mark.parametrize("lines", [True, False])
def test_json_is_rewritten_by_the_printed_command(root, lines):
    FRAME.to_json(root / "t.jsonl", orient="records", lines=lines)
    (problem,) = problems(root / "t.jsonl")
    assert problem.startswith("it is JSON")
    run_command_of(problem)
    assert is_frame(read(root / "t.parquet"))


@pytest.mark.parametrize(
    ("start", "cause"),
    [
        (b"PK\x03\x04...", "Excel file or a zip"),
        (b"\xd0\xcf\x11\xe0...", "Excel"),
        (b"\x1f\x8b\x08...", "gunzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"  \n\n", "empty"),
        (b"PAR1 and no more", "cannot be read as parquet"),
        (b'id,image\n1,"images/a.png\n2,b\n', "a quote that opens in line 2 or later is not closed"),
        (b"id,image,labels\n1,images/a.png,x,y\n2,images/b.png,x,y\n",
         "line 2 has 4 cells and the header 3, more than there are columns (2 such lines): put cells that contain ','"),
        (b"id,image,labels\n1,images/a.png,x\n2,images/b.png", "line 3 has 2 cells and the header 3, fewer"),
    ],
)  # fmt: skip
def test_the_cause_is_named(root, start, cause):
    (root / "t.csv").write_bytes(start)
    (problem,) = problems(root / "t.csv", task="multilabel")
    assert cause in problem


def test_files_that_are_missing(root):
    FRAME.to_parquet(root / "t.parquet")
    assert problems(root / "t.csv") == ["the file does not exist; there is t.parquet"]
    assert problems(root / "images") == ["it is a folder, not a file"]


def test_lines_are_those_of_the_file(root):
    (root / "t.csv").write_text('id,image,label\n1,images/a.png,"x\n\ny"\n\n2,images/b.png,\n')
    found = problems(root / "t.csv")
    assert any("line 6 (id '2'): the label is empty" in problem for problem in found)
    assert any("line 2 (id '1')" in problem for problem in found)


@pytest.mark.parametrize(
    ("header", "advice"),
    [
        ("Image ID,file,species", "set 'data.columns.id=\"Image ID\"'"),
        ("key,file,species", "set data.columns.id=key"),
        ("key,file,species", "set data.columns.image=file"),
        ("key,file,species", "set data.columns.target=species"),
        ("ID,Image,Label", "set data.columns.target=Label"),
    ],
)
def test_columns_of_another_name_are_offered(root, header, advice):
    text = FRAME.to_csv(index=False, header=False)
    (root / "t.csv").write_text(f"{header}\n{text}")
    found = problems(root / "t.csv")
    assert len(found) == 3 and sum(advice in problem for problem in found) == 1
    chosen = [problem.rpartition("data.columns.")[2].partition("=")[2].strip("'\"") for problem in found]
    columns = Columns(*chosen)
    assert is_frame(read(root / "t.csv", columns))


def test_columns_that_are_often_called_so_are_offered_alone(root):
    names = ["uuid", "when", "path", "camera", "day", "sky", "tags"]
    rows = [f"{n},{n + 5},images/{'abc'[n]}.png,{n // 2},{n // 2},{n // 2},{'xyx'[n]}" for n in range(3)]
    (root / "t.csv").write_text("\n".join([",".join(names), *rows]) + "\n")
    found = problems(root / "t.csv")
    assert [problem.rpartition(": ")[2] for problem in found] == [
        "set data.columns.id=uuid", "set data.columns.image=path", "set data.columns.target=tags"
    ]  # fmt: skip


def test_ids_that_a_gap_made_decimals(root):
    FRAME.assign(id=[7.0, 8.0, 12.0]).to_parquet(root / "t.parquet")
    (problem,) = problems(root / "t.parquet")
    assert "the ids are decimals, such as 7.0" in problem and 'frame["id"].astype("Int64").astype(str)' in problem


def test_one_cause_is_one_line(root):
    rows = [f"{row % 500},images/a.png,{row}0;{row}5 ,x{row},{row},y" for row in range(1000)]
    (root / "t.csv").write_text("\n".join(["id,image,weight,fold,label,case", *rows]))
    found = problems(root / "t.csv", Columns(weight="weight", fold="fold"))
    assert len(found) == 3
    assert found[0].startswith("500 ids occur more than once: '0' (lines 2, 502), '1' (lines 3, 503), ")
    assert "the weight '00;05 ', '10;15 ', '20;25 ' and 997 more is not a number of 0 or more" in found[1]
    assert "the fold 'x0', 'x1', 'x2' and 997 more is not a whole number" in found[2]
    (root / "t.csv").write_text("id;image;weight;label\n1;images/a.png;0,5;x\n2;images/b.png;1;y\n")
    assert problems(root / "t.csv", Columns(weight="weight")) == [
        "line 2 (id '1'): the weight '0,5' is not a number of 0 or more: write decimals with a point"
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("25,75", "line 2 (id '1'): cat is '25', not within 0 to 1: divide percentages by 100"),
        ("yes,0.5", "line 2 (id '1'): cat is 'yes', not within 0 to 1: write 0 and 1 for no and yes"),
        ("-3,0.5", "line 2 (id '1'): cat is '-3', not within 0 to 1"),
        (",0.5", "line 2 (id '1'): cat is '', not within 0 to 1"),
    ],
)
def test_soft_targets_that_are_no_probabilities(root, values, message):
    (root / "t.csv").write_text(f"id,image,cat,dog\n1,images/a.png,{values}\n2,images/b.png,1,0\n")
    assert problems(root / "t.csv", Columns(target=["cat", "dog"]), "multilabel")[0] == message
    names = [f"c{number}" for number in range(40)]
    pd.DataFrame({"id": ["1", "2"], "image": "images/a.png"} | dict.fromkeys(names, "50")).to_csv(root / "t.csv")
    assert problems(root / "t.csv", Columns(target=names), "multilabel") == [
        "2 rows, lines 2, 3 (the first id is '1'): 40 columns have values not within 0 to 1: divide percentages by "
        "100: c0, c1, c2, c3, c4 and 35 more"
    ]


@pytest.mark.parametrize("text", ["", "nan", "NaN", "None", "<NA>"])
def test_a_missing_group_is_no_group(root, text):
    (root / "t.csv").write_text(f"id,image,label,scene\n1,images/a.png,x,a\n2,images/b.png,y,{text}\n")
    (problem,) = problems(root / "t.csv", Columns(group="scene"))
    assert problem.startswith("line 3 (id '2'): column 'scene' is empty, or says so")


def test_ids_with_control_characters(root):
    (root / "t.csv").write_text("id,image,label\n1\0,images/a.png,x\n2,images/b.png,y\n")
    assert problems(root / "t.csv") == ["line 2 (id '1\\x00'): the id '1\\x00' has a control character"]
