"""Methods compared on the same questions: one recipe in, records, measures and tables out."""

from treesnake.evaluation.bench.bench_recipe import BenchRecipe, read_bench_recipe
from treesnake.evaluation.bench.bench_run import run_recipe
from treesnake.evaluation.bench.journal import Journal
from treesnake.evaluation.bench.record import DrafterRecord, RunRecord
from treesnake.evaluation.bench.result_files import ResultFiles, write_results
from treesnake.evaluation.bench.summary import summarize, to_markdown

__all__ = [
    "BenchRecipe",
    "DrafterRecord",
    "Journal",
    "ResultFiles",
    "RunRecord",
    "read_bench_recipe",
    "run_recipe",
    "summarize",
    "to_markdown",
    "write_results",
]
