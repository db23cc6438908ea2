"""What a terminal and a log are shown, and what TensorBoard finds."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from treesnake.training.reporting import TerminalReporter
from treesnake.training.training_recipe import TrainingRecipe
from treesnake.training.training_run import train_drafter


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = TerminalReporter(seconds_between=0.0)
    reporter.begin("distil", 3, 10)
    reporter.advance(1, {"loss": 1.23456, "tokens/s": 12345.6})
    reporter.tell("[halfway]")
    reporter.end()
    assert capsys.readouterr().err.splitlines() == [
        "distil: 4 of 10 · loss 1.23 · tokens/s 12,346",
        "distil: [halfway]",
    ]
    patient = TerminalReporter(seconds_between=1e9)
    patient.begin("corpus", 0, None)
    patient.advance(1, {})
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    reporter = TerminalReporter()
    reporter.begin("distil", 0, 2)
    reporter.advance(2, {"loss": 0.5})
    reporter.end()
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "loss 0.5" in shown


def test_tensorboard_finds_loss_rate_and_judgements(
    distillation: TrainingRecipe, tmp_path: Path
) -> None:
    train_drafter(distillation, tmp_path, TerminalReporter(), tensorboard=True)
    events = EventAccumulator(str(tmp_path / "logs" / "distil"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"loss", "learning rate", "tokens/s", "held out/tokens_per_step"} <= {*tags}
    assert [event.step for event in events.Scalars("held out/tokens_per_step")] == [4, 8, 9]
