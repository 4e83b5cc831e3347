"""What the examples promise beyond that they run (tests/test_docs.py runs each)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import sdkit

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("train_folder", EXAMPLES / "train_folder.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pairs_that_are_asked_for_at_last_are_not_in_the_data(training: ModuleType, tmp_path: Path) -> None:
    folder = training.draw_shapes(tmp_path / "shapes", each=1)
    captions = {path.read_text().strip() for path in folder.glob("*.txt")}
    assert len(captions) == len(training.COLOURS) * len(training.SHAPES) - len(training.UNSEEN)
    assert not captions & {f"a {colour} {shape}" for colour, shape in training.UNSEEN}
    seen = {word for caption in captions for word in caption.split()}
    assert {word for pair in training.UNSEEN for word in pair} <= seen  # each word alone is known


def test_a_word_of_no_caption_is_an_error_with_words_near_to_it(training: ModuleType) -> None:
    encoder = training.Words.of(["a red circle", "A BLUE ring"])
    assert encoder.vocabulary == ("a", "blue", "circle", "red", "ring")
    assert encoder(["red ring", ""]).tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    with pytest.raises(sdkit.ParameterError, match="'rings' stands in no caption; near are ring"):
        encoder(["red rings"])


def test_training_learns_and_goes_on_from_its_checkpoint(
    training: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    few = training.draw_shapes(Path("few"), each=1)
    for path in sorted(few.iterdir())[4:]:
        path.unlink()
    training.main("few", steps=12)
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    # a network that knows nothing answers 0, whose mean square error is that of noise minus data: 2
    assert float(lines[-1].split("loss ")[1].split(",")[0]) < 1.7
    before = Path("trained.png").read_bytes()
    training.main("few", steps=12)
    assert "step 12\n" in capsys.readouterr().out  # nothing was left to do
    assert Path("trained.png").read_bytes() == before
    with pytest.raises(sdkit.FileError, match="steps"):
        training.main("few", steps=13)
