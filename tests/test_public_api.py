"""What users import: sorted, there, documented, and nothing else."""

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import treesnake
import treesnake.testing

PUBLIC_MODULES = [treesnake, treesnake.testing]


@pytest.mark.parametrize("module", PUBLIC_MODULES, ids=lambda module: module.__name__)
def test_names_are_exported_once(module: ModuleType) -> None:
    assert len(module.__all__) == len(set(module.__all__))


@pytest.mark.parametrize("module", PUBLIC_MODULES, ids=lambda module: module.__name__)
def test_exported_names_are_there(module: ModuleType) -> None:
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize("module", PUBLIC_MODULES, ids=lambda module: module.__name__)
def test_exported_functions_and_classes_are_documented(module: ModuleType) -> None:
    exported = {name: getattr(module, name) for name in module.__all__}
    assert [
        name
        for name, thing in exported.items()
        if (inspect.isclass(thing) or inspect.isroutine(thing)) and not inspect.getdoc(thing)
    ] == []


@pytest.mark.parametrize("module", PUBLIC_MODULES, ids=lambda module: module.__name__)
def test_public_names_that_are_not_exported_are_modules(module: ModuleType) -> None:
    others = {name for name in vars(module) if not name.startswith("_")} - set(module.__all__)
    assert [name for name in others if not inspect.ismodule(getattr(module, name))] == []


def test_exported_names_can_be_imported_from_a_fresh_interpreter() -> None:
    program = "from treesnake import *; from treesnake.testing import *"
    subprocess.run([sys.executable, "-c", program], check=True)


def printed_by(program: str) -> str:
    """Returns what a program prints in a fresh interpreter."""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_importing_the_package_waits_for_no_model_library() -> None:
    program = (
        "import sys, treesnake; treesnake.TreesnakeError; "
        "print(sorted({'numba', 'torch', 'transformers'} & set(sys.modules)))"
    )
    assert printed_by(program) == "[]"


def test_the_default_pair_is_loaded_without_the_compiler_of_torch() -> None:
    """It takes longer to import than the models to read, and hides behind harmless calls."""
    program = (
        "import sys; from treesnake.targets.load import load_target; "
        "from treesnake.drafters.load import load_drafter; model, loaded = load_target(); "
        "load_drafter('auto', target=loaded.checkpoint); "
        "heavy = {'torch._dynamo', 'sympy', 'transformers.models', 'transformers.activations'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert printed_by(program) == "[]"


def test_loading_waits_for_no_model_class_of_transformers() -> None:
    """In annotations such a class is a string; `import transformers` finds it when it is used."""
    program = (
        "import sys, treesnake.decoder, treesnake.cli.generate; "
        "print(sorted({'transformers.modeling_utils', 'torch._dynamo'} & set(sys.modules)))"
    )
    assert printed_by(program) == "[]"


def test_a_function_is_not_hidden_by_the_module_of_its_name() -> None:
    program = (
        "import treesnake.generate, treesnake.custom_generate; import treesnake; "
        "assert callable(treesnake.generate) and callable(treesnake.custom_generate)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_name_that_is_not_exported_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'speculate'"):
        _ = treesnake.speculate  # pyrefly: ignore
