"""Results as one page that needs nothing else, and as pictures for papers."""

from treesnake.evaluation.report.page import to_html
from treesnake.evaluation.report.pictures import save_pictures
from treesnake.evaluation.report.results import Result, read_result

__all__ = ["Result", "read_result", "save_pictures", "to_html"]
