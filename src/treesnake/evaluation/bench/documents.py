"""Long questions: the beginning of a text, so many tokens of it, and what is asked about it."""

from pathlib import Path

from treesnake.decoder import Tokenizer
from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.bench_recipe import LongContextTable
from treesnake.evaluation.tasks import Question
from treesnake.utf8 import check_path, read_text_file


def long_questions(
    task: LongContextTable, tokenizer: Tokenizer, folder: Path = Path()
) -> list[Question]:
    """Makes questions of each length; the length is their category.

    A document begins where the one before ended, in all files one behind the other, so that no two
    documents of a length have text in common.

    Args:
        task: what to make.
        tokenizer: the target's.
        folder: where the documents are.

    Raises:
        InvalidInputError: if a file cannot be read or is not UTF-8, or the files are too short.
    """
    if not task.lengths or min(task.lengths) < 1 or task.num_documents < 1:
        raise InvalidInputError(f"the task {task.name} needs lengths and documents of at least 1")
    tokens = tokenizer.encode(_read(task, folder), add_special_tokens=False)
    needed = max(task.lengths) * task.num_documents
    if len(tokens) < needed:
        raise InvalidInputError(
            f"the documents of {task.name} have {len(tokens)} tokens and {needed} are needed, "
            f"{task.num_documents} documents of {max(task.lengths)}; name more of them"
        )
    questions = []
    for length in task.lengths:
        for number in range(task.num_documents):
            text = tokenizer.decode(tokens[number * length : (number + 1) * length])
            turn = f"{text}\n\n{task.question}"
            questions.append(Question(f"{length}-{number}", f"{length} tokens", (turn,)))
    return questions


def _read(task: LongContextTable, folder: Path) -> str:
    paths = [folder / check_path(name, f"a document of {task.name}") for name in task.documents]
    return "\n\n".join(map(read_text_file, paths))
