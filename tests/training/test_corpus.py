"""Text, prompts and replies out of local files, and out of rows of any data set."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from treesnake.errors import InvalidInputError
from treesnake.json_lines import Row
from treesnake.training import corpus
from treesnake.training.corpus import (
    PROMPTS_FILE,
    collect_corpus,
    excluded_word_runs,
    read_left_out,
)
from treesnake.training.reporting import NoReporter
from treesnake.training.shards import read_shard, shard_files
from treesnake.training.texts import read_texts
from treesnake.training.training_recipe import CorpusStage

SHAREGPT = [{"from": "human", "value": " Why? "}, {"from": "gpt", "value": "Because."}]


@pytest.fixture
def tokenizer(target_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(target_folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


class Told(NoReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def tell(self, message: str) -> None:
        self.messages.append(message)


def collect(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Any],
    reporter: NoReporter | None = None,
    **fields: Any,
) -> Path:
    source = tmp_path / "rows.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    source.write_bytes(b"".join(line + b"\n" for line in lines))
    stage = CorpusStage(**({"name": "c", "source": str(source), "column": "text"} | fields))
    collect_corpus(stage, tmp_path / "c", tokenizer, 272, reporter or NoReporter())
    return tmp_path / "c"


def learned(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Returns the texts of a folder without their end tokens."""
    shards = [read_shard(path) for path in shard_files(folder)]
    return [
        tokenizer.decode(shard.answers[start : start + length - 1].long())
        for shard in shards
        for start, length in zip(shard.answer_starts, shard.answer_lengths.tolist(), strict=True)
    ]


def prompts(folder: Path) -> list[str]:
    lines = (folder / PROMPTS_FILE).read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def test_prompts_are_first_questions_each_once(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"turns": SHAREGPT}, {"turns": SHAREGPT}, {"turns": SHAREGPT[1:]}, {"turns": []}]
    folder = collect(tmp_path, tokenizer, rows, content="prompts", column="turns")
    assert prompts(folder) == ["Why?"]


def test_what_overlaps_with_excluded_prompts_is_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    judged = "one two three four five six seven eight nine"
    (tmp_path / "judged.jsonl").write_text(json.dumps({"turns": [judged]}) + "\n")
    rows = [{"text": f"Say: One, two, {judged[8:]}!"}, {"text": "one two three four five"}]
    exclude = (str(tmp_path / "judged.jsonl"),)
    folder = collect(tmp_path, tokenizer, rows, content="prompts", exclude=exclude)
    assert prompts(folder) == ["one two three four five"]


def test_texts_are_cut_and_end_with_an_end_token(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"text": "abcdefg"}, {"text": "hi"}]
    folder = collect(tmp_path, tokenizer, rows, content="text", max_tokens=5)
    texts = read_texts([folder], 5, 70000)
    assert texts.lengths == [5, 3, 3]
    batch = texts.batch([1])
    assert tokenizer.decode(batch.tokens[0]) == "fg"
    assert batch.labels[-1] == tokenizer.eos_token_id


def test_of_replies_only_the_reply_is_learned(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"turns": SHAREGPT}, {"turns": SHAREGPT[:1]}]
    folder = collect(tmp_path, tokenizer, rows, content="replies", column="turns")
    batch = read_texts([folder], 100, 70000).batch([0])
    assert tokenizer.decode(batch.labels[:-1]) == "Because."
    assert "Why?" in tokenizer.decode(batch.tokens[0])


def test_a_corpus_goes_on_where_it_ended(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "TOKENS_PER_SHARD", 8)
    rows = [{"text": f"text {index}"} for index in range(6)]
    folder = collect(tmp_path, tokenizer, rows, content="text")
    files = shard_files(folder)
    assert len(files) == 3
    expected = [read_shard(path).answers.tolist() for path in files]
    for path in files[1:]:
        path.unlink()
    collect(tmp_path, tokenizer, rows, content="text")
    assert [read_shard(path).answers.tolist() for path in shard_files(folder)] == expected


def test_parquet_and_plain_text_are_read(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    pq.write_table(pa.table({"text": ["one", "two", "three"]}), tmp_path / "rows.parquet")
    (tmp_path / "rows.txt").write_text("first\nsecond\n")
    for source, expected in (("rows.parquet", ["one", "two"]), ("rows.txt", ["first", "second"])):
        folder = collect(
            tmp_path,
            tokenizer,
            [],
            content="prompts",
            source=str(tmp_path / source),
            max_rows=2,
        )
        assert prompts(folder) == expected


def test_a_column_that_is_not_there_is_told(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(InvalidInputError, match="has no column 'text'; it has body"):
        collect(tmp_path, tokenizer, [{"body": "x"}], content="prompts")


ODD_ROWS: list[Any] = [
    {"text": None},
    {"text": ["a", "b"]},
    {"text": float("nan")},
    {"text": 3},
    {"text": " "},
    {"text": "half \ud83d"},
    {"body": "x"},
    None,
    [],
    3.5,
    b"no json",
    b'{"text": "\xff"}',
    b'{"text": "a", "text": "b"}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("row", ODD_ROWS, ids=lambda row: str(row)[:20])
def test_an_odd_row_is_left_out_and_told(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, row: Any
) -> None:
    told = Told()
    rows = [{"text": "one"}, row, {"text": "two\u2028three"}]
    folder = collect(tmp_path, tokenizer, rows, told, content="text")
    assert learned(folder, tokenizer) == ["one", "two\u2028three"]
    (account,) = read_left_out(folder)
    assert (account["rows"], account["first"]) == (1, [2])
    assert f"1 rows left out: 1 {account['reason']} (row 2)" in told.messages[-1]


def test_a_cut_last_line_costs_no_other_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b'{"text": "one"}\r\n\n{"text": "two"}\n{"text": "thr')
    stage = CorpusStage(name="c", source=f"{source}", content="prompts", column="text")
    collect_corpus(stage, tmp_path / "c", tokenizer, 272, NoReporter())
    assert prompts(tmp_path / "c") == ["one", "two"]


def test_rows_left_out_are_counted_once_by_a_run_that_goes_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "TOKENS_PER_SHARD", 8)
    rows = [{"text": None}, {"text": "text 0"}, b"{", {"text": "text 1"}, {"text": "text 2"}, 3]
    folder = collect(tmp_path, tokenizer, rows, content="text")
    whole = read_left_out(folder)
    shard_files(folder)[-1].unlink()
    told = Told()
    collect(tmp_path, tokenizer, rows, told, content="text")
    assert read_left_out(folder) == whole
    assert (
        "3 rows left out: 2 with no JSON object (row 3, 6); 1 without text (row 1)" in told.messages
    )


def test_rows_of_parquet_are_left_out_too(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    part = [{"type": "text", "text": "Hi"}]
    table = pa.table({"chat": [[{"role": "user", "content": part}], None, []]})
    pq.write_table(table, tmp_path / "rows.parquet")
    source = str(tmp_path / "rows.parquet")
    folder = collect(tmp_path, tokenizer, [], content="prompts", source=source, column="chat")
    assert prompts(folder) == ["Hi"]
    assert read_left_out(folder)[0]["first"] == [2, 3]
    with pytest.raises(InvalidInputError, match="has no column 'text'; it has chat"):
        collect(tmp_path, tokenizer, [], content="text", source=source)


def test_a_source_that_breaks_in_its_middle_keeps_what_was_read(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*arguments: Any) -> Iterator[Row]:
        yield Row(1, "row 1", {"text": "one"})
        raise InvalidInputError("cut")

    monkeypatch.setattr(corpus, "open_rows", cut)
    with pytest.raises(InvalidInputError, match="cut"):
        collect(tmp_path, tokenizer, [], content="text")
    monkeypatch.undo()
    rows = [{"text": "one"}, {"text": "two"}]
    assert learned(collect(tmp_path, tokenizer, rows, content="text"), tokenizer) == ["one", "two"]


def test_a_list_of_rows_is_read_from_a_json_file(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    source = tmp_path / "rows.json"
    for text in ('[{"text": "one"},\n 3, {"text": "two"}]', '{"text": "one"}\n3\n{"text": "two"}'):
        source.write_text(text)
        folder = collect(tmp_path, tokenizer, [], content="prompts", source=f"{source}")
        assert prompts(folder) == ["one", "two"]
        assert read_left_out(folder)[0]["first"] == [2]


def test_replies_may_have_a_column_of_their_own(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"text": "Why?", "reply": "So."}, {"text": "Who?", "reply": None}, {"text": "Me?"}]
    folder = collect(tmp_path, tokenizer, rows, content="replies", reply_column="reply")
    assert learned(folder, tokenizer) == ["So."]
    reasons = {each["reason"] for each in read_left_out(folder)}
    assert reasons == {"without a reply of text", 'without the column "reply"'}


@pytest.mark.parametrize("content", ["text", "prompts", "replies"])
def test_a_source_of_which_nothing_can_be_used_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, content: Any
) -> None:
    with pytest.raises(InvalidInputError, match=r'no row whose "text" can be used.*1 rows left'):
        collect(tmp_path, tokenizer, [{"text": None}], content=content)


def test_a_file_of_another_format_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / "rows.csv").write_text("text\n")
    with pytest.raises(InvalidInputError, match=r"no format that a corpus can have: \.jsonl"):
        collect(tmp_path, tokenizer, [], content="text", source=str(tmp_path / "rows.csv"))


def test_prompts_to_be_judged_by_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "judged.jsonl"
    words = "one two three four five six seven eight"
    path.write_text("".join(json.dumps({key: words}) + "\n" for key in ("turns", "prompt")))
    assert excluded_word_runs(path) == {tuple(words.split())}
    for row in ({"prompt": None}, {"turns": [None]}, {}, {"turns": {"a": words}}):
        path.write_text(json.dumps(row))
        with pytest.raises(InvalidInputError, match=r"line 1 of .*judged\.jsonl must be"):
            excluded_word_runs(path)
