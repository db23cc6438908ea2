"""What the files of an installed package state, read without importing it.

An engine that runs on GPUs cannot be imported everywhere, or takes minutes. Its files say what it
calls and which names it has, so a contract with it can be tested wherever it lies.
"""

import ast
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any


def is_installed(package: str) -> bool:
    """Tells whether there are files of a package."""
    return bool(_folders(package))


@cache
def source_of(module: str) -> ast.Module:
    """Returns the source of a module.

    Raises:
        ModuleNotFoundError: if no file has it.
    """
    package, *inner = module.split(".")
    for folder in _folders(package):
        path = folder.joinpath(*inner)
        for file in (path.parent / f"{path.name}.py", path / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text("utf-8"))
    raise ModuleNotFoundError(f"{package} has no module {module}")


def definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef:
    """Returns a class, a function, or a method as "Class.method".

    Raises:
        AttributeError: if the module does not define it.
    """
    found: Any = source_of(module)
    for part in name.split("."):
        inner = [each for each in ast.walk(found) if getattr(each, "name", None) == part]
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = next((each for each in inner if isinstance(each, kinds)), None)
        if found is None:
            raise AttributeError(f"{module} defines no {name}")
    return found


def parameters(module: str, name: str) -> list[str]:
    """Returns the names of a function's parameters, self included."""
    function = definition(module, name)
    assert not isinstance(function, ast.ClassDef), f"{name} is a class"
    given = function.args
    return [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def fields(module: str, name: str) -> set[str]:
    """Returns the names that a class annotates, as those of data do."""
    return {
        each.target.id
        for each in definition(module, name).body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }


def methods(module: str, name: str) -> set[str]:
    """Returns the names of the methods that a class defines itself."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {each.name for each in definition(module, name).body if isinstance(each, kinds)}


def set_attributes(module: str, name: str) -> set[str]:
    """Returns the attributes of `self` that a method sets."""
    return {
        each.attr
        for each in ast.walk(definition(module, name))
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and ast.unparse(each.value) == "self"
    }


def calls(module: str, name: str) -> Iterator[ast.Call]:
    """Iterates over the calls of functions and methods of a name."""
    for each in ast.walk(source_of(module)):
        if isinstance(each, ast.Call) and ast.unparse(each.func).rsplit(".", 1)[-1] == name:
            yield each


def takes(function: Callable[..., Any], call: ast.Call) -> bool:
    """Tells whether a function can be called with the arguments of a call."""
    named = {each.arg: each.value for each in call.keywords if each.arg is not None}
    try:
        inspect.signature(function).bind(*call.args, **named)
    except TypeError:
        return False
    return True


def _folders(package: str) -> list[Path]:
    # Not importlib.util.find_spec: a test may have put a stub into sys.modules.
    spec = PathFinder.find_spec(package)
    return [Path(each) for each in (spec.submodule_search_locations or ())] if spec else []
