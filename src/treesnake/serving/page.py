"""The page of the server: a chat that shows who wrote each token. It needs nothing else."""

import json
from html import escape
from importlib.resources import files

from treesnake.pages import page_part


def page_html(model_name: str, plain_step_s: float | None) -> str:
    """Returns the page.

    Args:
        model_name: what the model is called.
        plain_step_s: seconds of a step of plain decoding, for the estimated speed.
    """
    facts = json.dumps({"model": model_name, "plain_step_s": plain_step_s})
    facts = facts.replace("<", "\\u003c")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(model_name)}: treesnake</title>"
        f"<style>{page_part('style.css')}{_part('page.css')}</style></head>"
        f"<body><main>{_part('page.html')}</main>"
        f'<script type="application/json" id="facts">{facts}</script>'
        f"<script>{page_part('tree.js')}{_part('page.js')}</script></body></html>\n"
    )


def _part(name: str) -> str:
    return files("treesnake.serving").joinpath(name).read_text("utf-8")
