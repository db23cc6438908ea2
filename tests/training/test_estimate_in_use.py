"""What a run says of its drafter at the end is what `treesnake bench` measures with it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake.evaluation.bench import BenchRecipe, run_recipe
from treesnake.evaluation.bench.bench_recipe import (
    DrafterTable,
    PairTable,
    SamplingTable,
    TaskTable,
)
from treesnake.evaluation.bench.record import RunRecord
from treesnake.evaluation.bootstrap import bootstrap_rate
from treesnake.training.answers import read_prompts
from treesnake.training.held_out import ChainScore, HeldOutScore
from treesnake.training.reporting import NoReporter
from treesnake.training.shards import read_shard, shard_files
from treesnake.training.texts import read_texts
from treesnake.training.training_recipe import (
    AnswersStage,
    DistilStage,
    Mamba2Sizes,
    TrainingRecipe,
)
from treesnake.training.training_run import train_drafter

TEMPERATURE = 0.7
MAX_NEW_TOKENS = 24
HELD_OUT = 0.5
CHAIN = 4
NUM_REPEATS = 2

RARELY_SAID, OFTEN_SAID = [2], [2, 184, 267]
"""End tokens of answers that nearly all end for want of room, and that mostly end before that."""


@dataclass(frozen=True)
class Trained:
    """A pair, what its training said at the end, and the prompts that it was said of."""

    target: Path
    drafter: Path
    score: HeldOutScore
    prompts: list[str]


def write_target(source: Path, folder: Path, end_tokens: Sequence[int]) -> None:
    """Writes a tiny Llama whose last token says most of what comes next, so it is soon learned."""
    shutil.copytree(source, folder)
    config = LlamaConfig.from_pretrained(source)
    config.tie_word_embeddings = False
    config.eos_token_id = [*end_tokens]
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                size = 0.1 if ".layers." in name else 0.3
                parameter.normal_(0, size, generator=generator)
    model.save_pretrained(folder)


def held_out_prompts(answers: Path, prompts_file: Path) -> list[str]:
    prompts = read_prompts([prompts_file])
    order = [
        index for path in shard_files(answers) for index in read_shard(path).prompt_index.tolist()
    ]
    texts = read_texts([answers], max_tokens=99, vocab_size=272)
    return [prompts[order[row]] for row in texts.split(HELD_OUT)[1]]


@pytest.fixture(scope="module", params=[RARELY_SAID, OFTEN_SAID], ids=["cut", "ended"])
def trained(
    request: pytest.FixtureRequest,
    target_folder: Path,
    prompts_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    """A few updates on greedy and on sampled answers."""
    folder = tmp_path_factory.mktemp("estimate")
    write_target(target_folder, folder / "target", request.param)
    greedy, sampled = (
        AnswersStage(
            name=name,
            prompts=(str(prompts_file),),
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=temperature,
        )
        for name, temperature in [("greedy", 0.0), ("sampled", TEMPERATURE)]
    )
    distil = DistilStage(
        name="distil",
        data=("greedy", "sampled"),
        batch_tokens=1000,
        pass_tokens=1000,
        epochs=20,
        max_updates=25,
        learning_rate=2e-2,
        held_out=HELD_OUT,
        draft_length=CHAIN,
        evaluate_every=25,
    )
    recipe = TrainingRecipe(
        name="tiny",
        target=str(folder / "target"),
        drafter=Mamba2Sizes(
            hidden_size=32, num_layers=2, num_heads=4, head_dim=16, state_dim=8
        ),
        draft_vocabulary=128,
        stages=(greedy, sampled, distil),
        stored_dtype="float32",
    )
    drafter = train_drafter(recipe, folder / "run", NoReporter())
    (record,) = json.loads((drafter / "provenance.json").read_text())["stages"]
    return Trained(
        folder / "target",
        drafter,
        HeldOutScore.of_json(record["evaluations"][-1]["judgement"]),
        held_out_prompts(folder / "run" / "greedy", prompts_file),
    )


def bench(trained: Trained, temperature: float, repeats: int, folder: Path) -> list[RunRecord]:
    """Runs the same chains on the prompts, with the drafter as it was learned."""
    questions = folder / "questions.jsonl"
    rows = [json.dumps({"turns": prompt}) for prompt in trained.prompts]
    questions.write_text("\n".join(rows) + "\n")
    recipe = BenchRecipe(
        name="estimate",
        pairs={"tiny": PairTable(str(trained.target), "learned", device="cpu")},
        drafters={"learned": DrafterTable(str(trained.drafter), "float32")},
        methods=(f"chain({CHAIN}) chosen",),
        tasks=(TaskTable(str(questions)),),
        sampling=(SamplingTable(temperature),),
        max_new_tokens=MAX_NEW_TOKENS,
        repeats=repeats,
        num_shown=0,
        num_agreement=0,
    )
    runs = [*run_recipe(recipe, folder / "estimate.log.jsonl").runs]
    assert all(run.error is None for run in runs)
    return runs


def counts(runs: Sequence[RunRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Returns by prompt the new tokens and steps, then what each depth took and was offered."""
    rows: dict[str, np.ndarray] = {}
    for run in runs:
        (turn,) = run.turns
        assert turn.steps is not None
        depths = turn.steps.by_position
        row = np.zeros((2, 1 + CHAIN))
        row[:, 0] = turn.num_new, turn.num_emissions
        row[0, 1 : 1 + len(depths.taken)] = depths.taken
        row[1, 1 : 1 + len(depths.offered)] = depths.offered
        rows[run.question] = rows.get(run.question, 0) + row
    table = np.stack([*rows.values()])
    return table[:, 0], table[:, 1]


def estimated(chains: ChainScore) -> list[float]:
    return [chains.tokens_per_step, *chains.acceptance_by_position]


def test_greedy_chains_do_what_training_said(trained: Trained, tmp_path: Path) -> None:
    """One pass over the text and decoding look at the same places, so this is no estimate."""
    greedy = trained.score.chains[0]
    runs = bench(trained, 0.0, 1, tmp_path)
    amounts, times = counts(runs)
    assert (greedy.num_texts, greedy.num_tokens) == (len(runs), amounts[:, 0].sum())
    assert amounts.sum(0) / times.sum(0) == pytest.approx(estimated(greedy), abs=1e-5)
    assert greedy.tokens_per_step > 1.3, "it learned nothing"


def test_sampled_chains_do_what_training_said(trained: Trained, tmp_path: Path) -> None:
    """The answers are others, for both, so the estimate has chance of its own."""
    sampled = trained.score.chains[1]
    amounts, times = counts(bench(trained, TEMPERATURE, NUM_REPEATS, tmp_path))
    for index, value in enumerate(estimated(sampled)):
        measured = bootstrap_rate(amounts[:, index], times[:, index])
        assert measured is not None
        assert measured.low < value < measured.high, (index, value, measured)
