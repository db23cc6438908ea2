"""How the numbers of a generation are shown."""

from dataclasses import replace

import pytest

from treesnake.cli.statistics import Comparison, print_statistics, statistics
from treesnake.outcome import Acceptance, FinishReason, Generation, Step, StepSeconds
from treesnake.shape import OFF
from treesnake.tree import TokenTree


def generation(stream_weights: dict[str, float] | None) -> Generation:
    step = Step(
        OFF,
        TokenTree((1,), (-1,)),
        Acceptance((0,), 2),
        (2,),
        StepSeconds(0.1, 0.1, 0.1, 0.1),
        stream_weights=stream_weights,
    )
    return Generation((2,), None, (step,), FinishReason.LENGTH)


def test_the_weights_of_several_streams_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"M": 0.7, "T": 0.3}
    print_statistics(Comparison(generation(weights)))
    assert "M 70% T 30%" in capsys.readouterr().err
    assert statistics(Comparison(generation(weights)))["stream_weights"] == weights


@pytest.mark.parametrize("weights", [None, {"M": 1.0}])
def test_one_stream_needs_no_weight(
    weights: dict[str, float] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    print_statistics(Comparison(generation(weights)))
    assert "%" not in capsys.readouterr().err


def test_the_gain_is_an_estimate_from_steps_of_one_node(
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = generation(None).steps[0]
    several = Generation((2, 2, 2), None, (step,) * 3, FinishReason.LENGTH)
    assert several.estimated_speedup == pytest.approx(0.75)  # a quarter of each step was drafting
    print_statistics(Comparison(several))
    assert "about 0.8x plain (estimate)" in capsys.readouterr().err
    assert generation(None).estimated_speedup is None


def test_a_pause_of_the_machine_is_no_loss() -> None:
    step = generation(None).steps[0]
    paused = replace(step, seconds=StepSeconds(0.1, 5.1, 0.1, 0.1))
    several = Generation((2,) * 6, None, (paused, *(step,) * 5), FinishReason.LENGTH)
    assert several.estimated_speedup == pytest.approx(0.75)
