"""Methods compared on the same questions: one recipe in, records, measures and tables out."""

from treesnake.evaluation.bench.journal import Journal
from treesnake.evaluation.bench.recipe import BenchRecipe, read_recipe
from treesnake.evaluation.bench.record import AgreementRecord, RunRecord
from treesnake.evaluation.bench.results import ResultFiles, write_results
from treesnake.evaluation.bench.run import run_recipe
from treesnake.evaluation.bench.summary import summarize, to_markdown

__all__ = [
    "AgreementRecord",
    "BenchRecipe",
    "Journal",
    "ResultFiles",
    "RunRecord",
    "read_recipe",
    "run_recipe",
    "summarize",
    "to_markdown",
    "write_results",
]
