"""Text, prompts and replies out of local files, and out of rows of any data set."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from treesnake.errors import InvalidInputError
from treesnake.training import corpus
from treesnake.training.corpus import PROMPTS_FILE, collect_corpus, read_exchange
from treesnake.training.reporting import NoReporter
from treesnake.training.shards import read_shard, shard_files
from treesnake.training.texts import read_texts
from treesnake.training.training_recipe import CorpusStage

SHAREGPT = [{"from": "human", "value": " Why? "}, {"from": "gpt", "value": "Because."}]
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
]


@pytest.fixture
def tokenizer(target_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(target_folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def collect(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, rows: list[Any], **fields: Any
) -> Path:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = CorpusStage(**({"name": "c", "source": str(source), "column": "text"} | fields))
    collect_corpus(stage, tmp_path / "c", tokenizer, 272, NoReporter())
    return tmp_path / "c"


def prompts(folder: Path) -> list[str]:
    lines = (folder / PROMPTS_FILE).read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def test_prompts_are_first_questions_each_once(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"turns": SHAREGPT}, {"turns": SHAREGPT}, {"turns": SHAREGPT[1:]}, {"turns": []}]
    folder = collect(tmp_path, tokenizer, rows, content="prompts", column="turns")
    assert prompts(folder) == ["Why?"]


def test_conversations_of_either_kind_are_read() -> None:
    exchange = read_exchange(CHAT)
    assert exchange is not None
    assert (exchange.prompt, exchange.reply) == ("Who?", "Me.")
    assert read_exchange("  ") is None
    assert read_exchange(CHAT[2:]) is None


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
