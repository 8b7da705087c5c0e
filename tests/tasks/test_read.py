"""Every format that is read, and every mistake that is named with file, line and remedy."""

import gzip
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abmll.common.errors import DataError
from abmll.tasks.file_limits import Unpacking
from abmll.tasks.read import load_task, load_tasks

Write = Callable[..., Path]
Question = Callable[..., dict[str, Any]]


def test_jsonl(write_rows: Write, question: Question) -> None:
    path = write_rows([question(1), question(2, answer="no", note="ignored"), question(3, id=17)])
    task = load_task(path)
    assert (task.name, task.source, task.family) == ("task", str(path), None)
    assert [e.answer for e in task.examples] == [1, 1, 1]
    assert [e.id for e in task.examples] == ["task/0", "task/1", "17"]
    assert task.examples[0].options == ("yes", "no")


def test_name_task_and_family(write_rows: Write, question: Question) -> None:
    path = write_rows([question(n, task="parity", family="numbers") for n in range(3)])
    assert (load_task(path).name, load_task(path).family) == ("parity", "numbers")
    assert load_task(path, name="other").name == "other"


def test_every_word_for_a_split(write_rows: Write, question: Question) -> None:
    words = ["train", "test", "validation", "valid", "val", "dev"]
    task = load_task(write_rows([question(n, split=word) for n, word in enumerate(words)]))
    assert [e.split for e in task.examples] == ["train", *["test"] * 5]


def test_answers_may_be_missing_in_questions(write_rows: Write, question: Question) -> None:
    path = write_rows([question(1, answer=...), question(2, answer=None), question(3)])
    assert [e.answer for e in load_task(path, require_answer=False).examples] == [None, None, 1]
    with pytest.raises(DataError, match=r"task.jsonl:1: no key 'answer'. Add it."):
        load_task(path)


def test_metaicl(write_rows: Write) -> None:
    rows = [{"task": "glue-sst2", "input": "good film", "output": "positive", "options": ["negative", "positive"]}]
    task = load_task(write_rows(rows))
    assert (task.name, task.examples[0].answer) == ("glue-sst2", 1)


def test_crossfit(tmp_path: Path) -> None:
    path = tmp_path / "sst2.tsv"
    path.write_text('a "good film\tpositive\nbad\tnegative\n\nfine, fine\tpositive\n')
    task = load_task(path)
    assert [(e.input, e.options, e.answer) for e in task.examples] == [
        ('a "good film', ("negative", "positive"), 1),
        ("bad", ("negative", "positive"), 0),
        ("fine, fine", ("negative", "positive"), 1),
    ]


@pytest.mark.parametrize(("name", "header"), [("t.csv", "input,output\n"), ("t.tsv", ""), ("t.tsv", "input\toutput\n")])
def test_77_distinct_outputs_are_as_many_options(name: str, header: str, tmp_path: Path) -> None:
    mark = "," if name == "t.csv" else "\t"
    (tmp_path / name).write_text(header + "".join(f"question {n}{mark}intent {n % 77}\n" for n in range(200)))
    examples = load_task(tmp_path / name).examples
    assert {len(e.options) for e in examples} == {77}
    assert [e.options[e.answer or 0] for e in examples] == [f"intent {n % 77}" for n in range(200)]


@pytest.mark.parametrize(("name", "header"), [("t.csv", "input,output\n"), ("t.tsv", ""), ("t.tsv", "input\toutput\n")])
def test_questions_without_outputs(name: str, header: str, tmp_path: Path) -> None:
    mark = "," if name == "t.csv" else "\t"
    path = tmp_path / name
    path.write_text(f"{header}good{mark}positive\nbad{mark}negative\nso so{mark}\n")
    examples = load_task(path, require_answer=False).examples
    assert [(e.input, e.answer) for e in examples] == [("good", 1), ("bad", 0), ("so so", None)]
    with pytest.raises(DataError, match=r":[34]: no key 'output'"):
        load_task(path)
    path.write_text(f"{header}good{mark}\nbad{mark}\n")
    with pytest.raises(DataError, match="inputs without options to choose from; add columns option_1, option_2"):
        load_task(path, require_answer=False)


def test_inputs_alone_need_options(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("input\ngood\nbad\n")
    with pytest.raises(DataError, match="inputs without options to choose from; add columns option_1, option_2"):
        load_task(tmp_path / "t.csv", require_answer=False)


def test_an_empty_or_absent_input_is_allowed(tmp_path: Path, write_rows: Write, question: Question) -> None:
    (tmp_path / "t.csv").write_text("option_a,option_b,answer\nyes,no,0\n")
    (tmp_path / "u.csv").write_text("input,option_a,option_b,answer\n,yes,no,0\n")
    for path in (tmp_path / "t.csv", tmp_path / "u.csv", write_rows([question(input="")])):
        assert load_task(path).examples[0].input == ""


def test_few_shot_files_of_one_task_become_its_splits(tmp_path: Path) -> None:
    folder = tmp_path / "sst2"
    folder.mkdir()
    (folder / "sst2_16_100_train.tsv").write_text("good\tpositive\nawful\tnegative\n")
    (folder / "sst2_16_100_dev.tsv").write_text("nice\tpositive\n")
    (folder / "sst2_16_100_test.tsv").write_text("poor\tnegative\nneither\tneutral\n")
    (task,) = load_tasks(tmp_path)
    assert task.name == "sst2"
    assert {e.options for e in task.examples} == {("negative", "neutral", "positive")}
    assert [e.input for e in task.train] == ["good", "awful"]
    assert sorted(e.input for e in task.test) == ["neither", "nice", "poor"]
    (folder / "sst2_16_13_dev.tsv").write_text("nice\tpositive\n")
    with pytest.raises(DataError, match=r"same task and split as .*keep one"):
        load_tasks(tmp_path)


CSV_WITH_LIST = 'input,options,answer\n"Is 1, even?","[""yes"", ""no""]",1\nIs 2 even?,"[""yes"", ""no""]",yes\n'
CSV_WITH_COLUMNS = "input,option_a,option_b,option_c,answer\nIs 1 even?,yes,no,,no\nWhich?,x,y,z,2\n"


def test_csv_with_a_list_of_options(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CSV_WITH_LIST)
    assert [(e.input, e.options, e.answer) for e in load_task(path).examples] == [
        ("Is 1, even?", ("yes", "no"), 1),
        ("Is 2 even?", ("yes", "no"), 0),
    ]


def test_csv_and_tsv_with_columns_of_options(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV_WITH_COLUMNS)
    (tmp_path / "t.tsv").write_text(CSV_WITH_COLUMNS.replace(",", "\t"))
    for name in ("t.csv", "t.tsv"):
        examples = load_task(tmp_path / name).examples
        assert [(e.options, e.answer) for e in examples] == [(("yes", "no"), 1), (("x", "y", "z"), 2)]


def test_in_a_csv_the_text_goes_before_the_index(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("input,choice_1,choice_2,choice_3,answer\n1 + 1?,3,1,2,1\n1 + 2?,5,4,3,0\n")
    assert [e.answer for e in load_task(path).examples] == [1, 0]


def test_json_list_and_gz(tmp_path: Path, question: Question) -> None:
    rows = [question(1), question(2)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(CSV_WITH_LIST.encode()))
    assert [len(task.examples) for task in load_tasks(tmp_path)] == [2, 2, 2]
    assert [task.name for task in load_tasks(tmp_path)] == ["a", "b", "c"]


def test_parquet(tmp_path: Path, question: Question) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([question(1), question(2)]), tmp_path / "t.parquet")
    assert [e.answer for e in load_task(tmp_path / "t.parquet").examples] == [1, 0]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is not Parquet")
    with pytest.raises(DataError, match=r"bad.parquet: not a readable Parquet file"):
        load_task(tmp_path / "bad.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([question(1, answer=float("nan"))]), tmp_path / "nan.parquet")
    with pytest.raises(DataError, match=r"nan.parquet: row 1: answer is NaN \(float\)"):
        load_task(tmp_path / "nan.parquet")


def test_hugging_face_folder(tmp_path: Path, question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = datasets.Dataset.from_list([question(n) for n in range(4)])
    datasets.DatasetDict({"train": table, "validation": table.select([0])}).save_to_disk(tmp_path / "parity")
    (task,) = load_tasks(f"hf:{tmp_path / 'parity'}")
    assert (task.name, len(task.train), len(task.test)) == ("parity", 4, 1)
    table.save_to_disk(tmp_path / "whole")
    (task,) = load_tasks(f"hf:{tmp_path / 'whole'}")
    assert [e.split for e in task.examples] == [None] * 4
    with pytest.raises(DataError, match=r"hf:.*nothing: no such folder"):
        load_tasks(f"hf:{tmp_path / 'nothing'}")


def test_a_byte_order_mark_is_ignored(write_rows: Write, question: Question, tmp_path: Path) -> None:
    path = write_rows([question(1)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_task(path).examples[0].input == "Is 1 even?"
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + CSV_WITH_LIST.encode())
    assert len(load_task(tmp_path / "t.csv").examples) == 2


def test_several_tasks_in_one_file(write_rows: Write, question: Question) -> None:
    path = write_rows([question(n, task="ab"[n % 2]) for n in range(5)])
    assert [(task.name, len(task.examples)) for task in load_tasks(path)] == [("a", 3), ("b", 2)]
    with pytest.raises(DataError, match="holds 2 tasks"):
        load_task(path)
    path = write_rows([question(1, task="a"), question(2, task="b"), question(3)])
    with pytest.raises(DataError, match=r"task.jsonl:3: no key 'task'"):
        load_tasks(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": ...}, "no key 'input'. Add it."),
        ({"input": ..., "inputs": "?"}, "no key 'input'. Rename 'inputs' to 'input'."),
        ({"input": 3}, r"'input' is 3 \(int\); it must be a text"),
        ({"input": None}, "'input' is null; it must be a text"),
        ({"input": "\ud800"}, "'input' holds half a surrogate pair"),
        ({"options": ...}, "no key 'options'. Add it."),
        ({"options": "yes|no"}, "'options' is \"yes|no\" .*must be a list of texts"),
        ({"options": ["yes", 2]}, r"option 1 is 2 \(int\); it must be a text"),
        ({"options": ["yes"]}, "1 option; a question needs at least 2"),
        ({"options": ["yes", "no", "yes"]}, "options 0 and 2 are both 'yes'"),
        ({"options": ["yes", ""]}, "option 1 is empty"),
        ({"options": [f"o{n}" for n in range(201)]}, "201 options; at most 200"),
        ({"input": " \t"}, "the input is white space alone"),
        ({"answer": "maybe"}, "answer 'maybe' is not among the 2 options"),
        ({"answer": 2}, "answer 2 is out of range: 2 options count from 0 to 1"),
        ({"answer": -1}, "answer -1 is out of range"),
        ({"answer": True}, r"answer is true \(bool\)"),
        ({"answer": 1.0}, r"answer is 1.0 \(float\)"),
        ({"answer": ..., "anwser": 0}, "no key 'answer'. Rename 'anwser' to 'answer'."),
        ({"answer": ..., "output": 1}, r"output is 1 \(int\)"),
        ({"split": "training"}, 'split is "training" .*use one of train, test'),
        ({"id": True}, r"'id' is true \(bool\)"),
        ({"id": "first"}, "id 'first' is that of .*task.jsonl:1 too"),
    ],
)
def test_a_bad_row_is_named(changes: dict[str, Any], message: str, write_rows: Write, question: Question) -> None:
    path = write_rows([question(0, id="first"), question(1, **changes)])
    with pytest.raises(DataError, match=f"task.jsonl:2: {message}") as caught:
        load_task(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("task.jsonl:2") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b"", "the file is empty"),
        ("t.jsonl", b"\n \n", "the file is empty"),
        ("t.json", b"", "the file is empty"),
        ("t.json", b"[]", "the file is empty"),
        ("t.csv", b"input,options,answer\n", "the file is empty"),
        ("t.jsonl", b"{}\n{'input': 1}\n", ":2: malformed JSON"),
        ("t.jsonl", b'{}\n\n{"answer": NaN}', ":3: malformed JSON .NaN is no JSON number"),
        ("t.jsonl", b'{"answer": -Infinity}', ":1: malformed JSON .-Infinity is no JSON number"),
        ("t.jsonl", b"[" * 100_000, ":1: malformed JSON"),
        ("t.jsonl", b'"text"', ":1: expected an object"),
        ("t.json", b'[{"input": "?"},\n{"input": ?}]', ":2: malformed JSON"),
        ("t.json", b'{"input": "?"}', "expected a list of objects"),
        ("t.json", b"[1]", "item 0: expected an object"),
        ("t.json", b'[\n"caf\xe9"]', ":2: not UTF-8"),
        ("t.jsonl", b'{}\n{"input": "caf\xe9"}', ":2: byte 15 of the line is not UTF-8"),
        ("t.jsonl", '{"input": "x"}'.encode("utf-16"), ":1: the file is UTF-16; save it as UTF-8"),
        ("t.csv", b"input,options,answer\na,b\n", ":2: 2 cells under 3 columns"),
        ("t.csv", b'input,answer\n"a,b\n', ":2: malformed table"),
        ("t.csv", b"input,input\na,b\n", ":1: two columns of the header have the same name"),
        ("t.csv", b"input,options,answer\n?,yes|no,yes\n", ":2: 'options' is not a JSON list"),
        ("t.csv", b"input,option_a,option_b,answer\n?,x,y,5\n", ":2: answer 5 is out of range"),
        ("t.tsv", b"one\tyes\ntwo\n", ":2: 1 columns"),
        ("t.tsv", b"one\tyes\ntwo\tyes\n", ":1: 1 option;"),
        ("t.tsv", "".join(f"{n}\to{n}\n" for n in range(201)).encode(), "201 distinct outputs"),
        ("t.tsv", b"one\tyes\n  \tno\n", ":2: the input is white space alone"),
        ("t.csv", b'input,output\none,yes\n" ",no\n', ":3: the input is white space alone"),
        ("t.jsonl.gz", b"not gzip", "damaged gzip"),
        ("t.jsonl.gz", gzip.compress(b'{"input": "x"}\n' * 1000, mtime=0)[:-20], "damaged gzip"),
        ("t.docx", b"", "unknown kind of file; use one of .jsonl, "),
    ],
)
def test_a_bad_file_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_task(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.tsv", "t.jsonl.gz"])
def test_an_endless_line_stops_early(name: str, tmp_path: Path) -> None:
    content = b'{"input": "' + b"x" * 50_000_000 + b'"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=r":1: line longer than 10 MB"):
        load_task(tmp_path / name)


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.csv.gz", "t.tsv.gz", "t.json.gz"])
def test_a_small_file_that_unpacks_to_gigabytes_stops_early(name: str, tmp_path: Path) -> None:
    piece = gzip.compress((b" " * 99_999 + b"\n") * 100)
    (tmp_path / name).write_bytes(piece * 11)
    with pytest.raises(DataError, match=r"unpacks to more than \d+ MB, out of [\d,]+ bytes; where that is meant"):
        load_task(tmp_path / name)


def test_what_is_large_already_may_unpack_to_more(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(b"x" * 1_000_000)
    unpacking = Unpacking(path, "unpack it")
    unpacking.add(100_000_000)
    unpacking.add(25_000_000)
    with pytest.raises(DataError, match="more than 125 MB, out of 1,000,000 bytes; unpack it"):
        unpacking.add(1)
    with pytest.raises(DataError, match="more than 20,000 MB"):
        Unpacking(path, "unpack it", lambda: 10**12).add(20 * 10**9 + 1)


def test_a_dull_part_of_a_large_file_is_noticed_where_it_stands(tmp_path: Path) -> None:
    path, row = tmp_path / "t.csv.gz", b"text,label\n"
    path.write_bytes(gzip.compress(row * 3_000_000) + gzip.compress(random.Random(0).randbytes(2_000_000)))
    with pytest.raises(DataError, match=r"unpacks to more than \d\d MB, out of [\d,]{5,7} bytes"):
        load_task(path)


def test_a_sheet_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("xl/worksheets/sheet1.xml", b" " * 30_000_000)
    with pytest.raises(DataError, match=r"unpacks to more than \d\d MB, out of [\d,]+ bytes; save it again"):
        load_task(tmp_path / "t.xlsx")


def test_parquet_that_no_python_value_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def refusal(column: Any) -> str:
        parquet.write_table(pyarrow.table({"input": column}), tmp_path / "t.parquet")
        with pytest.raises(DataError) as caught:
            load_task(tmp_path / "t.parquet")
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{tmp_path / 't.parquet'}: ")

    ends = pyarrow.py_buffer(b"".join(end.to_bytes(4, "little") for end in (0, 2, 4)))
    text = pyarrow.Array.from_buffers(pyarrow.utf8(), 2, [None, ends, pyarrow.py_buffer(b"ok\xff\xfe")])
    assert refusal(text).startswith("row 2: 'input' holds a text that is not UTF-8; write")
    assert refusal(pyarrow.array([2**30], pyarrow.date32())).startswith("row 1: 'input' holds a value that cannot be")
    monkeypatch.setattr("abmll.tasks.file_limits.MAX_ROWS", 2)
    assert refusal(pyarrow.array(["a"] * 3)) == "has 3 rows; at most 2 are read. Take a part of it"


def test_a_parquet_file_of_a_few_bytes_that_holds_gigabytes(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    long = pyarrow.array(["x" * 5_000_000, "y" * 5_000_000])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1] * 5000), long)
    parquet.write_table(pyarrow.table({"input": column}), tmp_path / "t.parquet", compression="zstd")
    assert (tmp_path / "t.parquet").stat().st_size < 10_000
    with pytest.raises(DataError, match=r"unpacks to more than 20\d MB, out of [\d,]+ bytes; where that is meant"):
        load_task(tmp_path / "t.parquet")


def test_a_table_of_very_many_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",".join(map(str, range(10_001))) + "\n")
    with pytest.raises(DataError, match=r"t\.csv:1: 10,001 columns; at most 10,000 are read\. Leave some out"):
        load_task(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"input": "a", "input": "b"}', "the key 'input' occurs twice"),
        ('{"input": 1e999}', "the number 1e999 is too large"),
        ('{"input": "a", "x": ' + "[" * 65 + "]" * 65 + "}", "nested more than 64 levels deep"),
    ],
)
def test_json_that_says_two_things_or_too_much(row: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(row + "\n")
    with pytest.raises(DataError, match=rf"t\.jsonl:1: malformed JSON \({problem}\); correct or remove it"):
        load_task(tmp_path / "t.jsonl")


def test_a_csv_field_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("input,option_a,option_b,answer\n" + "x" * 200_000 + ",a,b,0\n")
    with pytest.raises(DataError, match=r":2: a cell has more than 131,072 characters"):
        load_task(tmp_path / "t.csv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv.gz", ".parquet", ".xlsx"])
def test_a_pipe_is_refused_and_not_waited_for(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a pipe or a device; give a file, or - for standard input"):
        load_task(path)


def test_a_link_to_a_file_is_read(write_rows: Write, question: Question, tmp_path: Path) -> None:
    path = write_rows([question()] * 2, "animals.jsonl")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.jsonl").symlink_to(path)
    assert len(load_task(tmp_path / "elsewhere" / "link.jsonl").examples) == 2


def test_a_missing_file_names_its_nearest_sibling(write_rows: Write, question: Question) -> None:
    path = write_rows([question()], "animals.jsonl")
    with pytest.raises(DataError, match=r"no such file. Did you mean 'animals.jsonl'\?"):
        load_task(path.with_name("animal.jsonl"))


def test_a_folder(write_rows: Write, question: Question, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no task files in this folder"):
        load_tasks(tmp_path)
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", ".hidden.jsonl", "manifest.json", "notes.txt"):
        write_rows([question(n) for n in range(3)], name)
    assert [task.name for task in load_tasks(tmp_path)] == ["a", "b", "c"]
    write_rows([question()], "sub/a.jsonl")
    with pytest.raises(DataError, match=r"sub.a.jsonl: a task 'a' is in .*a.jsonl too"):
        load_tasks(tmp_path)


def test_two_families_in_one_task(write_rows: Write, question: Question) -> None:
    with pytest.raises(DataError, match="several families"):
        load_task(write_rows([question(1, family="a"), question(2, family="b")]))


@pytest.mark.parametrize("twin", ["yes\u200b", "y\u00ades", "\ufeffyes", "yes\u00a0\u2800", "yes\x00"])
def test_options_that_look_the_same_are_warned_of(twin: str, write_rows: Write, question: Question) -> None:
    said: list[str] = []
    rows = [question(n, options=["yes", twin, "no"], answer=2) for n in range(3)]
    load_tasks(write_rows(rows), announce=said.append)
    [line] = said
    assert line.endswith(
        f"task.jsonl:1: options that look the same: 'yes' and {twin!a}; if they mean the same, make them one"
    )
    said.clear()
    load_tasks(write_rows([question(options=["2", "x\u00b2", "X2", "x2"], answer=0)]), announce=said.append)
    assert said == []


def test_composed_and_decomposed_options_are_warned_of(write_rows: Write, question: Question) -> None:
    said: list[str] = []
    load_tasks(write_rows([question(options=["caf\u00e9", "cafe\u0301"], answer=0)]), announce=said.append)
    assert "'caf\\xe9' and 'cafe\\u0301'" in said[0]
