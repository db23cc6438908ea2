"""Runs a recipe: every method on a question before the next question, each result on disk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from treesnake.decoder import SpeculativeDecoder
from treesnake.drafters.load import JOIN, WEIGHTLESS
from treesnake.evaluation.agreement import compare_models
from treesnake.evaluation.bench.bench_recipe import BenchRecipe, SamplingTable, TaskTable
from treesnake.evaluation.bench.documents import long_questions
from treesnake.evaluation.bench.journal import Journal
from treesnake.evaluation.bench.methods import Method
from treesnake.evaluation.bench.pair_loader import PairLoader
from treesnake.evaluation.bench.record import DrafterRecord, RunRecord, TurnRecord, with_texts
from treesnake.evaluation.bench.runners import MeasuredTurn, Runner, SpeculativeRunner
from treesnake.evaluation.bench.served_memories import ServedMemories
from treesnake.evaluation.bench.turns import prompt_behind
from treesnake.evaluation.memory import watch_memory_growth
from treesnake.evaluation.tasks import Question, load_questions
from treesnake.images import read_image, small_copy
from treesnake.outputs import check_output, held_alone
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.utf8 import check_path, writable

WARM_UP_TOKENS = 16
MOST_ASKED = 400
"""Characters of a question that are kept."""

Progress = Callable[[int, int, str], None]
"""Is told how many runs are done, of how many, and what comes next."""


@dataclass(frozen=True)
class _AskedQuestion:
    """A question in a recipe.

    Attributes:
        pair: name of the pair.
        task: name of the task.
        question: the question.
        is_shown: whether every step is kept.
        is_compared: whether drafters are compared with the target on it.
    """

    pair: str
    task: str
    question: Question
    is_shown: bool
    is_compared: bool


def run_recipe(
    recipe: BenchRecipe,
    journal_path: Path,
    *,
    data_folder: Path = Path(),
    progress: Progress | None = None,
) -> Journal:
    """Makes all runs of a recipe that its journal lacks.

    All methods answer a question before the next one is asked, each time in another order, so that
    a machine that becomes slower or hotter does so for all of them. A method runs warm: its first
    run is thrown away. A method that cannot run is recorded with its error.

    Args:
        recipe: what to run.
        journal_path: the file of records, which is continued.
        data_folder: where files are that the recipe names for its tasks.
        progress: is told how far it is.

    Raises:
        InvalidInputError: if the journal is another recipe's, or another process writes it.
        OutputError: if the journal cannot be written.
        LoadError: if a target or a task cannot be had.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    check_output(journal_path)
    with held_alone(journal_path):
        journal = Journal(journal_path, recipe.as_json())
        bench = _Bench(recipe, journal, data_folder, progress)
        for pair in recipe.pairs:
            bench.run_pair(pair)
    return journal


class _Bench:
    """A recipe under way."""

    def __init__(
        self,
        recipe: BenchRecipe,
        journal: Journal,
        data_folder: Path,
        progress: Progress | None,
    ) -> None:
        self._recipe = recipe
        self._data_folder = data_folder
        self._journal = journal
        self._progress = progress
        self._methods = recipe.parsed_methods
        self._broken: set[tuple[str, str]] = set()
        self._num_done = 0
        self._num_runs = 0
        self._memories: ServedMemories | None = None

    def run_pair(self, pair: str) -> None:
        """Runs all methods of a pair; its models are let go of afterwards."""
        loader = PairLoader(self._recipe.pairs[pair], self._recipe.drafters)
        questions = list(self._questions(pair, loader.decoder))
        self._memories = self._new_memories(loader.decoder, questions)
        per_question = len(self._methods) * len(self._recipe.sampling) * self._recipe.repeats
        self._num_runs = len(self._recipe.pairs) * len(questions) * per_question
        warm: set[str] = set()
        for number, asked in enumerate(questions):
            for sampling in self._recipe.sampling:
                for repeat in range(self._recipe.repeats):
                    for method in _rotated(list(self._methods.values()), number + repeat):
                        self._run(loader, method, asked, sampling, repeat, warm)
            if asked.is_compared:
                self._compare(loader, asked)

    def _questions(self, pair: str, decoder: SpeculativeDecoder) -> Iterator[_AskedQuestion]:
        recipe = self._recipe
        tasks: list[tuple[str, list[Question]]] = [
            (task.name or task.source, self._load(task)) for task in recipe.tasks
        ]
        assert decoder.tokenizer is not None
        tasks += [
            (task.name, long_questions(task, decoder.tokenizer, self._data_folder))
            for task in recipe.long_context
        ]
        for task, questions in tasks:
            for index, question in enumerate(questions):
                yield _AskedQuestion(
                    pair, task, question, index < recipe.num_shown, index < recipe.num_agreement
                )

    def _new_memories(
        self, decoder: SpeculativeDecoder, asked: Sequence[_AskedQuestion]
    ) -> ServedMemories | None:
        recipe = self._recipe
        if not recipe.has_memory:
            return None
        served = [question for task in recipe.served for question in self._load(task)]
        reported = [each.question for each in asked]
        return ServedMemories(decoder, served, reported, recipe.max_new_tokens)

    def _load(self, task: TaskTable) -> list[Question]:
        path = self._data_folder / check_path(task.source, "the source of a task")
        source = str(path) if path.is_file() else task.source
        return load_questions(source, per_category=task.per_category)

    def _run(
        self,
        loader: PairLoader,
        method: Method,
        asked: _AskedQuestion,
        sampling: SamplingTable,
        repeat: int,
        warm: set[str],
    ) -> None:
        """Makes one run, unless it was made before."""
        self._num_done += 1
        blank = RunRecord(
            pair=asked.pair,
            method=method.name,
            task=asked.task,
            question=asked.question.name,
            category=asked.question.category,
            sampling=sampling.name,
            repeat=repeat,
        )
        params = sampling.params(self._recipe.seed + repeat)
        memories = self._memories if method.drafts else None
        if (asked.pair, method.name) in self._broken or self._is_made(
            blank, asked.question, params, memories
        ):
            return
        if self._progress:
            self._progress(self._num_done, self._num_runs, f"{method.name}, {blank.category}")
        try:
            runner = loader.runner(method)
        except Exception as error:  # noqa: BLE001 - a method that cannot run is a result
            self._broken.add((asked.pair, method.name))
            self._journal.append(replace(blank, error=_describe(error)))
            return
        try:
            if method.name not in warm:
                first = prompt_behind(loader.decoder, asked.question, ())
                runner.run(first, params, WARM_UP_TOKENS, is_shown=False)
                warm.add(method.name)
            if memories is not None and isinstance(runner, SpeculativeRunner):
                runner = runner.with_memory(memories.of(blank, params))
            record = self._answer(loader, runner, blank, asked, params)
        except Exception as error:  # noqa: BLE001 - neither need every method answer everything
            record = replace(blank, error=_describe(error))
        self._journal.append(record)

    def _is_made(
        self,
        blank: RunRecord,
        question: Question,
        params: SamplingParams,
        memories: ServedMemories | None,
    ) -> bool:
        """Tells whether a run was made before; what it answered is remembered again."""
        made = self._journal.run(blank.key)
        if made is not None and memories is not None:
            memories.take_up(made, question, params)
        return made is not None

    def _answer(
        self,
        loader: PairLoader,
        runner: Runner,
        blank: RunRecord,
        asked: _AskedQuestion,
        params: SamplingParams,
    ) -> RunRecord:
        """Answers every turn of a question."""
        decoder = loader.decoder
        turns: list[TurnRecord] = []
        answer: MeasuredTurn | None = None
        prompt: Prompt | None = None
        with watch_memory_growth(loader.device) as growth:
            for _ in asked.question.turns:
                prompt = prompt_behind(decoder, asked.question, turns)
                answer = runner.run(
                    prompt, params, self._recipe.max_new_tokens, is_shown=asked.is_shown
                )
                turns.append(with_texts(answer.turn, partial(_decode, decoder)))
        assert answer is not None, "a question has turns"
        assert prompt is not None, "a question has turns"
        return replace(
            blank,
            turns=tuple(turns),
            weights_bytes=answer.weights_bytes,
            growth_bytes=growth.num_bytes,
            target_bytes=answer.target_bytes,
            drafter_bytes=answer.drafter_bytes,
            asked=asked.question.turns[0][:MOST_ASKED] if asked.is_shown else None,
            pictures=_small_pictures(prompt) if asked.is_shown else (),
        )

    def _compare(self, loader: PairLoader, asked: _AskedQuestion) -> None:
        """Compares each drafter of the methods with the target along the target's own text."""
        names = [loader.drafter_name(one) for one in self._methods.values() if not one.peer]
        # What is joined to a drafter has no probabilities of its own.
        drafters = {name.partition(JOIN)[0] for name in names}
        for drafter in sorted(drafters - {*WEIGHTLESS}):
            blank = DrafterRecord(
                asked.pair, drafter, asked.task, asked.question.name, asked.question.category
            )
            if blank.key not in self._journal:
                self._journal.append(self._agreement(loader, asked, drafter, blank))

    def _agreement(
        self, loader: PairLoader, asked: _AskedQuestion, drafter: str, blank: DrafterRecord
    ) -> DrafterRecord:
        params = SamplingParams(temperature=1.0, seed=self._recipe.seed)
        prompt = prompt_behind(loader.decoder, asked.question, ())
        try:
            text = loader.decoder.generate(
                prompt, params, max_new_tokens=self._recipe.max_new_tokens
            )
            found = compare_models(
                loader.target_model().new_session(),
                loader.drafter(drafter).new_session(),
                prompt,
                text.token_ids,
                params,
            )
        except Exception as error:  # noqa: BLE001 - a drafter without probabilities is a result
            return replace(blank, error=_describe(error))
        return replace(
            blank,
            num_positions=found.num_positions,
            total_variation=found.total_variation,
            num_same_choice=found.num_same_choice,
            bin_counts=tuple(found.bin_counts.tolist()),
            bin_confidence=tuple(found.bin_confidence.tolist()),
            bin_target_probs=tuple(found.bin_target_probs.tolist()),
        )


def _rotated(methods: Sequence[Method], number: int) -> list[Method]:
    start = number % len(methods)
    return [*methods[start:], *methods[:start]]


def _small_pictures(prompt: Prompt) -> tuple[str, ...]:
    pictures = [image.picture for image in prompt.inputs if image.picture is not None]
    return tuple(small_copy(read_image(each, "the picture")) for each in pictures)


def _decode(decoder: SpeculativeDecoder, token_ids: Sequence[int]) -> str:
    assert decoder.tokenizer is not None
    return decoder.tokenizer.decode(token_ids)


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())
    return writable(f"{type(error).__name__}: {text}")[:400]
