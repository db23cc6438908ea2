"""What a benchmark runs: pairs x methods x tasks x sampling, as a TOML file or as options."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from treesnake.arguments import as_num_threads
from treesnake.drafters.load import AUTO, Tokens
from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.methods import Method, parse_method
from treesnake.loading.checkpoint import DEFAULT_MODEL
from treesnake.loading.options import DtypeName, EngineName, LoadOptions
from treesnake.sampling import SamplingParams
from treesnake.tables import check_file_name, read_table, read_toml
from treesnake.utf8 import described

GREEDY = "greedy"

MAY_BE_ZERO = ("seed", "num_shown", "num_agreement")
LARGEST_COUNT = 2**31 - 1
"""No count of a benchmark is larger, and no seed."""


@dataclass(frozen=True)
class PairTable:
    """A target, and the drafter of methods that name none.

    Attributes:
        target: as in `SpeculativeDecoder.from_pretrained`.
        drafter: a name of `drafters`, or one that `load_drafter` knows.
        assisted_by: the Transformer for transformers' own assisted generation.
        dtype: of the target.
        device: of both.
        engine: of the target.
        trust_remote_code: runs code that comes with the target.
    """

    target: str = DEFAULT_MODEL
    drafter: str = AUTO
    assisted_by: str | None = None
    dtype: DtypeName = "auto"
    device: str = "auto"
    engine: EngineName = "auto"
    trust_remote_code: bool = False

    @property
    def load_options(self) -> LoadOptions:
        """How the target is loaded."""
        return LoadOptions(
            self.dtype, self.device, self.engine, trust_remote_code=self.trust_remote_code
        )


@dataclass(frozen=True)
class DrafterTable:
    """A drafter with options, for methods to name.

    Attributes:
        model: as in `load_drafter`.
        dtype: of its weights.
        window: how many tokens a Transformer sees at most.
        tokens: how its tokens become the target's, as in `load_drafter`.
    """

    model: str
    dtype: DtypeName = "auto"
    window: int | None = None
    tokens: Tokens = "auto"


@dataclass(frozen=True)
class TaskTable:
    """Questions.

    Attributes:
        source: a file or a name, as in `load_questions`.
        name: in tables; the source if left out.
        per_category: the first so many questions of each category.
    """

    source: str
    name: str | None = None
    per_category: int | None = None


@dataclass(frozen=True)
class LongContextTable:
    """Questions about the beginnings of long documents; the length is the category.

    Attributes:
        documents: text files; one document each, or joined until they are long enough.
        lengths: in tokens of the target.
        num_documents: how many questions of each length.
        question: what is asked behind the document.
        name: in tables.
    """

    documents: tuple[str, ...]
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    num_documents: int = 2
    question: str = "Summarize the text above in a few paragraphs."
    name: str = "long-context"


@dataclass(frozen=True)
class SamplingTable:
    """A distribution to sample from, as in `SamplingParams`; the seed is that of the run."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def params(self, seed: int) -> SamplingParams:
        """Returns the params of one run."""
        return SamplingParams(self.temperature, self.top_k, self.top_p, self.min_p, seed)

    @property
    def name(self) -> str:
        """The name in tables."""
        if self.temperature == 0:
            return GREEDY
        parts = [f"temperature {self.temperature:g}"]
        parts += [f"top-k {self.top_k}"] if self.top_k is not None else []
        parts += [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
        parts += [f"min-p {self.min_p:g}"] if self.min_p > 0 else []
        return ", ".join(parts)


@dataclass(frozen=True)
class BenchRecipe:
    """A benchmark.

    Attributes:
        name: of its results.
        description: what it is to show.
        pairs: by name.
        methods: see `parse_method`. The first is what the others are compared with.
        drafters: drafters with options, by name.
        tasks: what is asked.
        long_context: what is asked about long documents.
        sampling: the distributions.
        max_new_tokens: of each turn.
        repeats: how often each run is made.
        seed: of the first repeat; the next has the next.
        threads: on a CPU; None is one for each core.
        num_shown: of so many questions of each task every drafted tree is kept, for the report.
        num_agreement: on so many questions of each task the drafters' probabilities are compared
            with the target's.
        has_memory: whether our methods draft from their earlier answers, too, to the questions
            before.
        served: what was asked before the first question, so that a memory begins warm.

    Raises:
        InvalidInputError: for a method that does not exist, and if there is nothing to run.
    """

    name: str
    pairs: dict[str, PairTable]
    methods: tuple[str, ...]
    description: str = ""
    drafters: dict[str, DrafterTable] = field(default_factory=dict)
    tasks: tuple[TaskTable, ...] = ()
    long_context: tuple[LongContextTable, ...] = ()
    sampling: tuple[SamplingTable, ...] = (SamplingTable(),)
    max_new_tokens: int = 128
    repeats: int = 1
    seed: int = 0
    threads: int | None = None
    num_shown: int = 1
    num_agreement: int = 2
    has_memory: bool = False
    served: tuple[TaskTable, ...] = ()

    def __post_init__(self) -> None:
        if not (self.pairs and self.methods and (self.tasks or self.long_context)):
            raise InvalidInputError(
                f"the recipe {self.name} needs at least one pair, one method and one task"
            )
        if self.served and not self.has_memory:
            raise InvalidInputError(
                f"the recipe {self.name} has served questions and no memory of them; set "
                "has_memory = true, or leave them out"
            )
        for part in (self, *self.tasks, *self.served, *self.long_context, *self.drafters.values()):
            _check_counts(part)
        if self.threads is not None:
            as_num_threads(self.threads)
        self._check_names()
        for text in self.methods:
            parse_method(text)
        for sampling in self.sampling:
            sampling.params(self.seed)

    def _check_names(self) -> None:
        """Checks that records of one name are of one thing, or some would never be made."""
        tasks = [task.name or task.source for task in self.tasks]
        names = {
            "method": self.methods,
            "sampling": [sampling.name for sampling in self.sampling],
            "task": [*tasks, *(task.name for task in self.long_context)],
        }
        for kind, given in names.items():
            if not given:
                raise InvalidInputError(f"the recipe {self.name} needs at least one {kind}")
            if twice := next((name for name in given if list(given).count(name) > 1), None):
                raise InvalidInputError(
                    f"a {kind} is listed twice, or two have the name {described(twice)} in tables; "
                    "leave one out or name them differently"
                )
        for task in self.long_context:
            if len({*task.lengths}) < len(task.lengths):
                raise InvalidInputError(f"the task {task.name} lists a length twice")

    @property
    def parsed_methods(self) -> dict[str, Method]:
        """The methods by their names."""
        return {text: parse_method(text) for text in self.methods}

    def as_json(self) -> dict[str, Any]:
        """Returns the recipe as plain data."""
        return asdict(self)


def _check_counts(part: BenchRecipe | TaskTable | LongContextTable | DrafterTable) -> None:
    for name, value in vars(part).items():
        counts = value if name == "lengths" else (value,)
        if name == "lengths" and not value:
            raise InvalidInputError("lengths must name at least one length")
        least = 0 if name in MAY_BE_ZERO else 1
        for count in counts:
            if type(count) is int and not least <= count <= LARGEST_COUNT:
                raise InvalidInputError(
                    f"{name} must be at least {least} and at most {LARGEST_COUNT}, not {count}"
                )


def read_bench_recipe(path: Path) -> BenchRecipe:
    """Reads a recipe.

    Raises:
        InvalidInputError: if it is no TOML, a key is unknown, missing or of another type, or a
            value cannot be right.
    """
    where = f"the recipe {path}"
    table = {"name": path.stem} | read_toml(path)
    try:
        recipe = read_table(BenchRecipe, table, where)
        check_file_name(recipe.name, "name")
    except InvalidInputError as error:
        message = str(error)
        raise InvalidInputError(
            message if message.startswith(where) else f"{where}: {message}"
        ) from error
    return recipe
