"""What our HTML pages have in common: one style, and one way to draw a tree."""

from importlib.resources import files


def page_part(name: str) -> str:
    """Returns a file of this package: `style.css`, or `tree.js`, which defines `drawTree`."""
    return files("treesnake.pages").joinpath(name).read_text("utf-8")
