"""What a training recipe says: a TOML file, read whole before anything is run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from treesnake.errors import InvalidInputError
from treesnake.loading.options import DtypeName
from treesnake.tables import check_file_name, read_table, read_toml


@dataclass(frozen=True, kw_only=True)
class MambaSizes:
    """A Mamba to be trained from its start."""

    kind: Literal["mamba"] = "mamba"
    hidden_size: int
    num_layers: int
    state_dim: int = 16
    expand: int = 2
    conv_width: int = 4


@dataclass(frozen=True, kw_only=True)
class Mamba2Sizes:
    """A Mamba-2 to be trained from its start."""

    kind: Literal["mamba2"] = "mamba2"
    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int = 64
    num_groups: int = 1
    state_dim: int = 128
    conv_width: int = 4


@dataclass(frozen=True, kw_only=True)
class TransformerSizes:
    """A Llama-like Transformer to be trained from its start."""

    kind: Literal["transformer"] = "transformer"
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int


@dataclass(frozen=True, kw_only=True)
class TrainedBefore:
    """A Mamba or Mamba-2 that goes on learning.

    It is a folder, a name at the hub, or a drafter that comes with the package.
    """

    kind: Literal["checkpoint"] = "checkpoint"
    source: str


DrafterSizes = MambaSizes | Mamba2Sizes | TransformerSizes | TrainedBefore


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a new drafter takes over from the target.

    Attributes:
        embeddings: the target's; where the drafter is narrower, on their principal directions.
        final_norm: the weight of the target's last norm; needs equal widths.
        final_norm_scale: what that weight is multiplied by; a young drafter's logits are too large
            for a large one.
        output_scale: what the output projections of all layers are multiplied by.
        frozen: parts that are not trained.
        attention_layers: layers of the target whose attention a Mamba-2's layers begin as, in
            order (Wang et al. 2024, "The Mamba in the Llama").
    """

    embeddings: Literal["random", "target"] = "random"
    final_norm: Literal["ones", "target"] = "ones"
    final_norm_scale: float = 1.0
    output_scale: float = 1.0
    frozen: tuple[Literal["embeddings", "final_norm"], ...] = ()
    attention_layers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CorpusStage:
    """Collects text or prompts.

    Attributes:
        name: how later stages call it.
        source: a data set at the hub, or a local .jsonl, .json, .parquet or .txt file; of the last
            each line is a row with the column "text".
        content: "text" is tokenized to learn from; "prompts" are questions, or the first ones of
            conversations, for the target to answer; "replies" are first questions with the replies
            that the data has, of which the replies are learned.
        column: where a row has its text or conversation.
        reply_column: of "replies", where a row has the reply, if it is not in the conversation.
        subset: of a data set at the hub.
        split: of a data set at the hub.
        max_rows: rows to be read; all if left out.
        max_tokens: longer texts are cut into parts of this length.
        exclude: JSONL files of prompts to be judged by; what shares eight words in a row with one
            of them is left out.
    """

    kind: Literal["corpus"] = "corpus"
    name: str
    source: str
    content: Literal["text", "prompts", "replies"]
    column: str
    reply_column: str | None = None
    subset: str | None = None
    split: str = "train"
    max_rows: int | None = None
    max_tokens: int = 1024
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AnswersStage:
    """Lets the target answer prompts, and keeps what it thought at every token.

    The target runs as it does for users: in the engine that suits the machine, with the weights
    that `target_dtype` says.

    Attributes:
        prompts: names of corpora of prompts, or JSONL files whose rows have a "prompt".
        max_prompt_tokens: longer prompts are left out.
        temperature: 0 is greedy.
        num_top: how many of the most probable tokens are kept at each position.
        batch_size: prompts that are answered at once.
        answered_by: another target, named as `target` is, whose answers are learned as text. They
            are written in the tokens of `target`, and of its probabilities nothing is kept.
    """

    kind: Literal["answers"] = "answers"
    name: str
    prompts: tuple[str, ...]
    max_prompt_tokens: int = 320
    max_new_tokens: int = 128
    temperature: float = 0.0
    num_top: int = 16
    batch_size: int = 64
    answered_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class LearningStage:
    """What pretraining and distillation have in common.

    Attributes:
        data: names of corpora or answers, or folders of shards.
        max_tokens: of a text; answers that are longer with their prompts are cut.
        batch_tokens: tokens an update, on all devices together.
        pass_tokens: tokens, padding included, that one device runs at once; memory grows with it.
        epochs: how often the data is gone through.
        max_updates: ends earlier.
        warmup: the part of all updates over which the learning rate rises from 0.
        final_rate: the last learning rate, as a part of `learning_rate`.
        weight_decay: of matrices.
        clip_norm: the largest norm of the gradient.
        optimizer: "muon" is for the matrices of the layers, the rest has AdamW then too.
        held_out: the part of the texts that judges the drafter, by a checksum of the prompt.
        max_held_out: texts of it that are used.
        draft_length: of the chains that the drafter is judged by.
        evaluate_every: updates between evaluations; there is one at the end in any case.
        checkpoint_every: updates between checkpoints.
    """

    name: str
    data: tuple[str, ...]
    max_tokens: int = 512
    batch_tokens: int = 65536
    pass_tokens: int = 16384
    epochs: int = 1
    max_updates: int | None = None
    learning_rate: float = 1e-3
    warmup: float = 0.03
    final_rate: float = 0.05
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    held_out: float = 0.01
    max_held_out: int = 256
    draft_length: int = 4
    evaluate_every: int = 200
    checkpoint_every: int = 200


@dataclass(frozen=True, kw_only=True)
class PretrainStage(LearningStage):
    """Learns the tokens of texts, by cross-entropy."""

    kind: Literal["pretrain"] = "pretrain"


Divergence = Literal["forward_kl", "reverse_kl", "total_variation", "rejection"]


@dataclass(frozen=True, kw_only=True)
class DistilStage(LearningStage):
    """Learns the target's probabilities.

    Attributes:
        divergence: of the drafter's distribution from the target's at temperature 1; "rejection" is
            the probability that the drafter's token is another than the target's, both drawn by the
            same noise at the temperature of the text.
        cross_entropy_weight: how much the cross-entropy of the tokens is added.
        probabilities: "stored" with the answers, the most probable ones and what is left over;
            "target" runs the target on every text and uses all of them.
        weights: "even" counts all tokens alike; "steps" counts a token by how many fewer steps of
            decoding the text takes if the drafter guesses it, with chains of `draft_length`.
        rollout_tokens: if not 0, each text ends at a position drawn by chance, and so many of the
            drafter's own tokens follow; what the target says there and to them is learned. Needs
            the target's probabilities, and a forward pass for each token.
    """

    kind: Literal["distil"] = "distil"
    divergence: Divergence = "forward_kl"
    cross_entropy_weight: float = 0.0
    probabilities: Literal["stored", "target"] = "stored"
    weights: Literal["even", "steps"] = "even"
    rollout_tokens: int = 0


Stage = CorpusStage | AnswersStage | PretrainStage | DistilStage


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """A drafter for a target, and how it comes to be.

    Attributes:
        name: of the drafter, and of the folder that it is made in.
        target: "smollm2", a folder, or a name at the hub.
        target_dtype: of the target's weights while it answers, as in `LoadOptions`.
        drafter: what is trained.
        draft_vocabulary: how many tokens the drafter can say, the most frequent ones of the data
            of the first learning stage. If left out, all, or those of before where it goes on
            learning.
        stages: run in this order.
        precision: of matrix products in training; "auto" is bfloat16 on GPUs that have it, else
            float32. "bfloat16" makes CPUs with matrix units faster too. Weights are trained in
            float32.
        stored_dtype: of the weights that are written in the end.
        stands_alone: True for a drafter that keeps its target's embeddings, and is to draft for
            other targets: its folder gets them in 4 bits, and its layers in 8
            (`treesnake.training.standing_alone`). Others stand alone as they are.
        seed: of every draw.
    """

    name: str
    target: str
    drafter: DrafterSizes
    stages: tuple[Stage, ...]
    target_dtype: DtypeName = "auto"
    start: Start = field(default_factory=Start)
    draft_vocabulary: int | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    stored_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    stands_alone: bool = False
    seed: int = 0


FRACTIONS = ("held_out", "final_rate", "warmup")
MAY_BE_ZERO = (
    "temperature",
    "weight_decay",
    "cross_entropy_weight",
    "rollout_tokens",
    "output_scale",
    "seed",
)
LARGEST_SEED = 2**29 - 1
"""Draws are numbered by seed, update and pass; the number has 64 bits."""

LARGEST_SIZE = 2**20
"""No width and no number of layers of a drafter is larger."""

RUN_FOLDERS = ("drafter", "logs", "draft-vocabulary")
"""What a run's folder holds beside those of its stages."""

KEPT_SUFFIXES = (".partial", ".replaced", ".json", ".lock", ".tmp")
"""Names of ours beside a stage's folder end so."""


def read_training_recipe(path: Path) -> TrainingRecipe:
    """Reads and checks a recipe.

    Raises:
        InvalidInputError: if it cannot be read, or something in it cannot be right.
    """
    recipe = read_table(TrainingRecipe, read_toml(path), f"the recipe {path}")
    try:
        check_training_recipe(recipe)
    except InvalidInputError as error:
        raise InvalidInputError(f"the recipe {path}: {error}") from error
    return recipe


def check_training_recipe(recipe: TrainingRecipe) -> None:
    """Checks what the types do not say.

    Raises:
        InvalidInputError: naming the stage and the value.
    """
    _check_names(recipe)
    _check_start(recipe)
    _check_numbers(recipe, "")
    _check_numbers(recipe.start, " of start")
    _check_numbers(recipe.drafter, " of the drafter", largest=LARGEST_SIZE)
    if recipe.seed > LARGEST_SEED:
        raise InvalidInputError(f"seed must be at most {LARGEST_SEED}, not {recipe.seed}")
    for stage in recipe.stages:
        _check_numbers(stage, f' of the stage "{stage.name}"')
        if isinstance(stage, DistilStage) and stage.rollout_tokens:
            _check_rollouts(stage)
        if isinstance(stage, CorpusStage):
            _check_corpus(stage)
    _check_order(recipe.stages)


def _check_corpus(stage: CorpusStage) -> None:
    if stage.max_tokens < 2:
        raise InvalidInputError(
            f'max_tokens of the stage "{stage.name}" must be at least 2, so that there is a '
            "token to learn"
        )
    if stage.reply_column is not None and stage.content != "replies":
        raise InvalidInputError(
            f'reply_column of the stage "{stage.name}" is for replies; write content = "replies", '
            "or leave it out"
        )


def _check_names(recipe: TrainingRecipe) -> None:
    names = [stage.name for stage in recipe.stages]
    if not names:
        raise InvalidInputError("a recipe has at least one stage; write [[stages]]")
    check_file_name(recipe.name, "name")
    for name in names:
        check_file_name(name, "the name of a stage")
        if name.lower() in RUN_FOLDERS or name.lower().endswith(KEPT_SUFFIXES):
            raise InvalidInputError(
                f'a stage cannot be called "{name}": {", ".join(RUN_FOLDERS)} and what ends in '
                f"{', '.join(KEPT_SUFFIXES)} are names of the run's own files"
            )
    folded = [name.casefold() for name in names]
    if repeated := [name for name in names if folded.count(name.casefold()) > 1]:
        raise InvalidInputError(f'two stages are called "{repeated[0]}"; each has its own folder')


def _check_start(recipe: TrainingRecipe) -> None:
    layers = recipe.start.attention_layers
    if layers and not isinstance(recipe.drafter, Mamba2Sizes):
        raise InvalidInputError("attention_layers is for a drafter of kind mamba2")
    if layers and min(layers) < 0:
        raise InvalidInputError(f"attention_layers are counted from 0, and have {min(layers)}")


def _check_numbers(
    part: TrainingRecipe | Start | DrafterSizes | Stage, where: str, largest: int | None = None
) -> None:
    for name, value in vars(part).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        place = f"{name}{where}"
        if not math.isfinite(value):
            raise InvalidInputError(f"{place} must be a number, not {value}")
        if name in FRACTIONS and not 0 <= value < 1:
            raise InvalidInputError(f"{place} must be at least 0 and below 1, not {value}")
        if value < 0 or (value == 0 and name not in (*FRACTIONS, *MAY_BE_ZERO)):
            raise InvalidInputError(f"{place} must be above 0, not {value}")
        if largest is not None and value > largest:
            raise InvalidInputError(f"{place} must be at most {largest}, not {value}")


def _check_rollouts(stage: DistilStage) -> None:
    if stage.probabilities != "target":
        raise InvalidInputError(
            f'the stage "{stage.name}" has rollout_tokens, to which nothing is stored; choose '
            'probabilities = "target"'
        )
    if stage.weights == "steps":
        raise InvalidInputError(
            f'the stage "{stage.name}" has rollout_tokens, which decoding never emits, so there '
            'are no steps to weigh; choose weights = "even"'
        )


def _check_order(stages: Sequence[Stage]) -> None:
    """Checks that what a stage needs comes before it, and is of a kind that it can use."""
    all_names = [stage.name for stage in stages]
    earlier: dict[str, Stage] = {}
    for stage in stages:
        for name in _needed(stage):
            where = f'the stage "{stage.name}" needs "{name}"'
            if name in all_names and name not in earlier:
                raise InvalidInputError(f"{where}, which does not come before it")
            if name in earlier and _is_prompts(earlier[name]) != isinstance(stage, AnswersStage):
                wanted = "prompts" if isinstance(stage, AnswersStage) else "texts to learn from"
                raise InvalidInputError(f"{where}, a stage that makes no {wanted}")
        earlier[stage.name] = stage


def _needed(stage: Stage) -> Sequence[str]:
    """Returns the names of what a stage reads; it reads something, each once."""
    if isinstance(stage, CorpusStage):
        return ()
    key = "prompts" if isinstance(stage, AnswersStage) else "data"
    names = stage.prompts if isinstance(stage, AnswersStage) else stage.data
    if not names or not all(names) or len({*names}) < len(names):
        raise InvalidInputError(
            f'{key} of the stage "{stage.name}" must name something, and nothing twice, not '
            f"{list(names)}"
        )
    return names


def _is_prompts(stage: Stage) -> bool:
    return isinstance(stage, CorpusStage) and stage.content == "prompts"
