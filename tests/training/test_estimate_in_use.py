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
from treesnake.training.held_out import HeldOutScore
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
HELD_OUT = 0.4
CHAIN = 4

VOCAB_SIZE = 272
END_TOKENS = [2, 184, 267]
"""Of the target: some answers end with one of them, the others for want of room."""


@dataclass(frozen=True)
class Trained:
    """A pair, what its training said at the end, and the prompts that it was said of."""

    target: Path
    drafter: Path
    score: HeldOutScore
    prompts: list[str]


def write_target(source: Path, folder: Path) -> None:
    """Writes a tiny Llama whose last token says most of what comes next, so it is soon learned."""
    shutil.copytree(source, folder)
    config = LlamaConfig.from_pretrained(source)
    config.tie_word_embeddings = False
    config.eos_token_id = END_TOKENS
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                size = 0.1 if ".layers." in name else 0.6 if "lm_head" in name else 0.3
                parameter.normal_(0, size, generator=generator)
    model.save_pretrained(folder)


def held_out_prompts(answers: Path, prompts_file: Path) -> list[str]:
    prompts = read_prompts([prompts_file])
    order = [
        index for path in shard_files(answers) for index in read_shard(path).prompt_index.tolist()
    ]
    texts = read_texts([answers], 99, VOCAB_SIZE)
    return [prompts[order[row]] for row in texts.split(HELD_OUT)[1]]


@pytest.fixture(scope="module")
def trained(
    target_folder: Path, prompts_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """A few updates on greedy and on sampled answers."""
    folder = tmp_path_factory.mktemp("estimate")
    write_target(target_folder, folder / "target")
    greedy, sampled = (
        AnswersStage(
            name=name,
            prompts=(str(prompts_file),),
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=temperature,
            num_top=32,
        )
        for name, temperature in [("greedy", 0.0), ("sampled", TEMPERATURE)]
    )
    distil = DistilStage(
        name="distil",
        data=("greedy", "sampled"),
        batch_tokens=1000,
        pass_tokens=1000,
        epochs=20,
        max_updates=20,
        learning_rate=2e-2,
        held_out=HELD_OUT,
        draft_length=CHAIN,
        evaluate_every=20,
    )
    recipe = TrainingRecipe(
        name="tiny",
        target=str(folder / "target"),
        drafter=Mamba2Sizes(hidden_size=32, num_layers=2, num_heads=4, head_dim=16, state_dim=8),
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


@pytest.fixture(scope="module")
def runs(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    """The same chains on the same prompts, with the drafter as it was learned."""
    folder = tmp_path_factory.mktemp("bench")
    questions = folder / "questions.jsonl"
    rows = [json.dumps({"turns": prompt}) for prompt in trained.prompts]
    questions.write_text("\n".join(rows) + "\n")
    recipe = BenchRecipe(
        name="estimate",
        pairs={"tiny": PairTable(str(trained.target), "learned", device="cpu")},
        drafters={"learned": DrafterTable(str(trained.drafter), "float32")},
        methods=(f"chain({CHAIN}) chosen",),
        tasks=(TaskTable(str(questions)),),
        sampling=(SamplingTable(), SamplingTable(TEMPERATURE)),
        max_new_tokens=MAX_NEW_TOKENS,
        num_shown=0,
        num_agreement=0,
    )
    found = [*run_recipe(recipe, folder / "estimate.log.jsonl").runs]
    assert all(run.error is None for run in found)
    return found


def counts(runs: Sequence[RunRecord], sampling: SamplingTable) -> tuple[np.ndarray, np.ndarray]:
    """Returns by prompt the new tokens and steps, then what each depth took and was offered."""
    rows: list[np.ndarray] = []
    for run in runs:
        if run.sampling != sampling.name:
            continue
        (turn,) = run.turns
        assert turn.steps is not None
        depths = turn.steps.by_position
        row = np.zeros((2, 1 + CHAIN))
        row[:, 0] = turn.num_new, turn.num_emissions
        row[0, 1 : 1 + len(depths.taken)] = depths.taken
        row[1, 1 : 1 + len(depths.offered)] = depths.offered
        rows.append(row)
    table = np.stack(rows)
    return table[:, 0], table[:, 1]


def test_greedy_chains_do_what_training_said(trained: Trained, runs: list[RunRecord]) -> None:
    """One pass over the text and decoding look at the same places, so this is no estimate."""
    greedy = trained.score.chains[0]
    amounts, times = counts(runs, SamplingTable())
    assert (greedy.num_texts, greedy.num_tokens) == (len(amounts), amounts[:, 0].sum())
    found = amounts.sum(0) / times.sum(0)
    assert found[0] == pytest.approx(greedy.tokens_per_step, abs=1e-5)
    assert found[0] > 1.3, "it learned nothing"
    num_cut = int(sum(amounts[:, 0] == MAX_NEW_TOKENS))
    assert 4 < num_cut < len(amounts) - 4, "answers end in one way only"
    # Chains near the room's end count as whole ones where an end token comes first.
    assert found[1:] == pytest.approx(greedy.acceptance_by_position, abs=0.01)


def test_sampled_chains_do_what_training_said(trained: Trained, runs: list[RunRecord]) -> None:
    """The answers are others, so both have chance of their own."""
    sampled = trained.score.chains[1]
    amounts, times = counts(runs, SamplingTable(TEMPERATURE))
    said = [sampled.tokens_per_step, *sampled.acceptance_by_position]
    for index, value in enumerate(said):
        measured = bootstrap_rate(amounts[:, index], times[:, index])
        assert measured is not None
        assert measured.low < value < measured.high, (index, value, measured)
