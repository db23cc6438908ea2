import pytest

from treesnake.errors import reason_of


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("the  size\n  of it"), "the size of it"),
        (ValueError(), "ValueError"),
        (KeyError("swiglu"), "'swiglu' is missing, or not known to it"),
        (KeyError("keys are missing: 'a'"), "keys are missing: 'a'"),
        (KeyError(3), "'3' is missing, or not known to it"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 10_000), "x" * 600),
    ],
)
def test_what_another_library_says_fits_in_one_line(error: Exception, said: str) -> None:
    assert reason_of(error) == said
