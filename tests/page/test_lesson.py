import pytest

from helpers.page.lesson import check_lesson


def test_a_lesson_that_holds_prints_what_was_measured(monkeypatch, capsys):
    monkeypatch.delenv("BASE_MODEL", raising=False)
    check_lesson(True, "loss 0.2")
    assert capsys.readouterr().out == "✓ loss 0.2\n"


def test_a_lesson_that_fails_stops_on_the_embedded_model(monkeypatch):
    monkeypatch.delenv("BASE_MODEL", raising=False)
    with pytest.raises(AssertionError, match="measured: loss 2.0"):
        check_lesson(False, "loss 2.0")


def test_another_model_is_told_that_the_margin_is_not_its_own(monkeypatch, capsys):
    monkeypatch.setenv("BASE_MODEL", "Qwen/Qwen3-0.6B")
    check_lesson(False, "loss 2.0")
    assert capsys.readouterr().out.startswith("✗ loss 2.0")
    check_lesson(True, "loss 0.2")
    assert capsys.readouterr().out.startswith("✓")
