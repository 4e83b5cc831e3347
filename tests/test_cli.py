"""The command line: what it writes, and the one line with which it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from PIL import Image

import sdkit
from sdkit import Registry
from sdkit.cli import main
from sdkit.plugins import registry
from tests.toys import LATENT, ToyPlugin


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Only the core and the toy model are installed; the working folder is empty."""
    made = Registry.of({"toys": ToyPlugin()})
    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls, environ=None: made))
    registry.cache_clear()
    monkeypatch.chdir(tmp_path)
    yield
    registry.cache_clear()


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> object:
    def call(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        captured = capsys.readouterr()
        code = caught.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


def generate(run: object, *arguments: str) -> Outcome:
    return run("generate", "a fox", "--model", "toy", *arguments)  # type: ignore[operator, no-any-return]


def test_generate_writes_a_picture_and_says_where(run: object) -> None:
    outcome = generate(run, "--out", "fox.png", "--seed", "3")
    assert (outcome.code, outcome.out, outcome.err) == (0, "fox.png\n", "")
    manifest = sdkit.read_manifest("fox.png")
    assert manifest.request.prompt == "a fox"
    assert manifest.request.seeds == (3,)
    with Image.open("fox.png") as image:
        assert image.size == (32, 32)


def test_without_a_name_the_file_is_named_after_prompt_and_seed(run: object) -> None:
    assert generate(run, "--seed", "3").out == "a-fox-3.png\n"
    assert Path("a-fox-3.png").is_file()


def test_without_a_seed_each_run_takes_a_new_one(run: object) -> None:
    names = {generate(run).out for _ in range(3)}
    assert len(names) == 3


def test_several_images_get_numbers_and_a_contact_sheet(run: object) -> None:
    outcome = generate(run, "--out", "fox.png", "--seed", "3", "--count", "3", "--sheet", "sheet.png")
    assert outcome.out.split() == ["fox-1.png", "fox-2.png", "fox-3.png", "sheet.png"]
    assert [sdkit.read_manifest(f"fox-{k}.png").index for k in (1, 2, 3)] == [0, 1, 2]
    with Image.open("sheet.png") as sheet:
        assert sheet.size[0] > 64


def test_every_option_reaches_the_request(run: object) -> None:
    outcome = generate(
        run, "--out", "a.png", "--steps", "7", "--scheduler", "ddim(eta=1)", "--spacing", "trailing", "--guidance", "3",
        "--negative", "dog", "--seed", "9", "--size", "40x24",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    request = sdkit.read_manifest("a.png").request
    assert (request.steps, request.guidance, request.negative, request.seeds) == (7, 3.0, "dog", (9,))
    assert (request.scheduler, request.spacing, request.size) == ("ddim(eta=1.0)", "trailing", (40, 24))


def test_image_to_image_and_inpainting(run: object) -> None:
    Image.effect_noise((32, 32), 80).convert("RGB").save("start.png")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    mask.save("mask.png")
    assert generate(run, "--image", "start.png", "--strength", "0.5", "--out", "a.png").code == 0
    assert sdkit.read_manifest("a.png").request.strength == 0.5
    assert generate(run, "--image", "start.png", "--mask", "mask.png", "--out", "b.png").code == 0
    with Image.open("start.png") as before, Image.open("b.png") as after:
        box = (16, 0, 32, 32)
        assert before.convert("RGB").crop(box).tobytes() == after.crop(box).tobytes()


def test_fit_resizes_the_start_image_and_mask(run: object) -> None:
    Image.effect_noise((100, 60), 80).save("start.png")
    Image.new("L", (100, 60), 255).save("mask.png")
    outcome = generate(run, "--image", "start.png", "--mask", "mask.png", "--out", "a.png")
    assert outcome.code == 2
    assert "multiples of 8" in outcome.err
    outcome = generate(run, "--image", "start.png", "--mask", "mask.png", "--fit", "--size", "48x32", "--out", "a.png")
    assert outcome.code == 0, outcome.err
    with Image.open("a.png") as image:
        assert image.size == (48, 32)


def test_rerun_makes_the_same_pixels(run: object) -> None:
    generate(run, "--out", "fox.png", "--count", "2", "--scheduler", "ddim(eta=1)")
    outcome = run("rerun", "fox-2.png")  # type: ignore[operator]
    assert (outcome.code, outcome.out, outcome.err) == (0, "fox-2-rerun.png\n", "same pixels\n")
    with Image.open("fox-2.png") as a, Image.open("fox-2-rerun.png") as b:
        assert a.tobytes() == b.tobytes()


def test_noise_is_an_option_and_rerun_follows_it(run: object) -> None:
    assert generate(run, "--out", "fox.png", "--seed", "3", "--scheduler", "ddim(eta=1)", "--noise", "torch").code == 0
    assert sdkit.read_manifest("fox.png").noise == "torch"
    assert run("rerun", "fox.png").err == "same pixels\n"  # type: ignore[operator]
    refused = generate(run, "--noise", "tourch")
    assert refused.code == 2
    assert "no noise 'tourch'; did you mean torch" in refused.err


def test_rerun_of_another_picture_says_so(run: object) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    outcome = run("rerun", "plain.png")  # type: ignore[operator]
    assert outcome.code == 2
    assert "carries no sdkit manifest" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "at least 1, not 0"),
        (["--steps", "x"], "'x' is not a valid integer"),
        (["--guidance", "nan"], "finite number, not nan"),
        (["--count", "0"], "--count must be at least 1"),
        (["--seed", "-1"], "not -1"),
        (["--size", "33x32"], "multiples of 8"),
        (["--size", "big"], "for example 128x128"),
        (["--scheduler", "eulr"], "did you mean euler"),
        (["--spacing", "karas"], "did you mean karras"),
        (["--model", "tiy"], "did you mean toy"),
        (["--model", "nowhere/model.safetensors"], "neither registered nor a file"),
        (["--device", "gpu9"], "'gpu9' cannot be used"),
        (["--image", "none.png"], "'none.png' cannot be read as a picture"),
        (["--strength", "0.5"], "no image"),
        (["--mask", "none.png"], "cannot be read"),
        (["--out", "missing/fox.png"], "'missing' does not exist"),
        (["--out", "fox.jpg"], "no name that ends in .png"),
        (["--out", "."], "no name that ends in .png"),
        (["--out", ".png"], "no name that ends in .png"),
        (["--out", "x" * 300 + ".png"], "name too long"),
        (["--count", "1000000000"], "at most 1000"),
        (["--guidance", "1e308"], "finite number"),
        (["--spacing", "karras(rho=0.001)"], "between 0.1 and 1000"),
        (["--device", "meta"], "cannot be used"),
        (["--sheet", "a.png", "--out", "a.png"], "also another output"),
        (["--sheet", "a-1.png", "--out", "a.png", "--count", "2"], "also another output"),
        (["--fit"], "--fit resizes --image"),
        (["--nonsense"], "No such option"),
        (["--metadata", "all"], "all"),
        (["extra"], "unexpected extra argument"),
    ],
)
def test_a_wrong_input_is_one_line_and_exit_code_2(run: object, arguments: list[str], message: str) -> None:
    outcome = generate(run, *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("Error: ")
    assert message in outcome.err
    assert list(Path().iterdir()) == []


def test_a_folder_without_permission_is_refused_before_any_work(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    outcome = generate(run, "--out", "fox.png")
    assert outcome.code == 2
    assert "no permission" in outcome.err


def test_unreadable_pictures_are_one_line(run: object) -> None:
    Path("a.png").write_bytes(b"no picture")
    outcome = generate(run, "--image", "a.png", "--out", "b.png")
    assert outcome.code == 2
    assert outcome.err == "Error: 'a.png' cannot be read as a picture: cannot identify image file 'a.png'.\n"


def test_a_pickle_is_refused_with_the_way_out(run: object) -> None:
    Path("model.ckpt").write_bytes(b"\x80\x04.")
    outcome = generate(run, "--model", "model.ckpt")
    assert outcome.code == 2
    assert "pickle" in outcome.err
    assert "safetensors" in outcome.err


def test_plugins_lists_what_is_there_and_what_is_broken(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> object:
        raise ImportError("no such thing")

    from sdkit.plugins.discovery import Candidate

    made = Registry.from_candidates([Candidate("toys", ToyPlugin), Candidate("bad", broken, "bad", "bad-dist", "2.0")])
    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls, environ=None: made))
    registry.cache_clear()
    listed = run("plugins")  # type: ignore[operator]
    assert listed.code == 0
    rows = listed.out.splitlines()
    assert any(row.startswith("bad") and "FAIL" in row and "ImportError: no such thing" in row for row in rows)
    assert any(row.startswith("toys") and "ok" in row and "model: toy" in row for row in rows)
    data = {status["name"]: status for status in json.loads(run("plugins", "--json").out)}  # type: ignore[operator]
    assert data["toys"]["ok"] and not data["bad"]["ok"]
    checked = run("plugins", "check")  # type: ignore[operator]
    assert checked.code == 1
    assert "FAIL bad: ImportError: no such thing" in checked.out


def test_plugins_check_passes_where_all_is_well(run: object) -> None:
    checked = run("plugins", "check")  # type: ignore[operator]
    assert checked.code == 0
    assert "0 failures" in checked.out


def test_schedulers_tells_traits_and_names(run: object) -> None:
    rows = run("schedulers").out.splitlines()  # type: ignore[operator]
    (row,) = [r for r in rows if r.startswith("dpmpp-2m")]
    assert "core" in row and "DPM++ 2M" in row
    data = {row["name"]: row for row in json.loads(run("schedulers", "--json").out)}  # type: ignore[operator]
    assert data["heun"]["traits"]["evaluations"] == 2
    assert data["heun"]["plugin"] == "core"


def test_models_tells_the_licence(run: object) -> None:
    outcome = run("models")  # type: ignore[operator]
    assert outcome.code == 0
    assert "toy (toys:toy)" in outcome.out
    assert "licence: unknown licence. The terms of this model are not known" in outcome.out
    data = json.loads(run("models", "--json").out)  # type: ignore[operator]
    assert data[0]["spec"]["licence"]["id"] == "unknown"


class Heavy:
    """A registered model that says what it is, and must not be loaded for that."""

    def __init__(self, told: object) -> None:
        self.told = told

    def __call__(self, *, device: str = "cpu") -> object:
        raise AssertionError("it was loaded")

    def spec(self) -> object:
        return self.told


terms = sdkit.Licence("some", "some terms", "Ask first.", duties=("Say so.",), attribution=("A. Nother",))
heavy = Heavy(sdkit.ModelSpec("heavy", "toy", LATENT, terms, guidance=3.0, knows=("fox", "owl")))
wrong = Heavy("a model")


def test_models_are_listed_without_being_loaded(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        @staticmethod
        @sdkit.hookimpl
        def sdkit_components() -> list[sdkit.Component]:
            return [sdkit.Component("model", name, f"tests.test_cli:{name}", "words") for name in ("heavy", "wrong")]

    made = Registry.of({"toys": ToyPlugin(), "more": Plugin()})
    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls, environ=None: made))
    registry.cache_clear()
    outcome = run("models")  # type: ignore[operator]
    assert outcome.code == 0
    _, told = outcome.out.split("heavy (more:heavy): words\n")
    heavy_told, wrong_told = told.split("wrong (more:wrong): words\n")
    assert heavy_told.splitlines()[1:] == [
        "  licence: some terms. Ask first.",
        "    duty: Say so.",
        "    by: A. Nother",
        "  knows fox, owl",
    ]
    assert wrong_told.startswith("  FAIL The model more:wrong says it is a str, not a sdkit ModelSpec.")
    assert "toy (toys:toy)" in outcome.out, "one that cannot say is loaded"
    assert run("licence", "show", "heavy").out.startswith("some terms (some)\n")  # type: ignore[operator]


@attrs.frozen
class Told:
    peak: int = 2_500_000_000
    weights: int = 1_200_000
    stage: str = "decoder"
    evaluations: int | None = 12
    rows: int = 4


def silent(model: object, request: object) -> None:
    """An estimator that knows no model."""


def speaking(model: sdkit.Model[object], request: sdkit.Request) -> Told:
    """An estimator that is asked as one would generate."""
    assert model.spec.name == "toy" and request.steps == 7 and request.seeds == (3, 4)
    return Told() if request.prompt == "a fox" else Told(evaluations=None)


def test_an_estimate_makes_no_picture(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        @staticmethod
        @sdkit.hookimpl
        def sdkit_components() -> list[sdkit.Component]:
            return [sdkit.Component("estimator", one, f"tests.test_cli:{one}") for one in ("silent", "speaking")]

    asked = ("--estimate", "--steps", "7", "--seed", "3", "--count", "2", "--out", "fox.png")
    outcome = generate(run, *asked)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1) and "No installed plugin can tell" in outcome.err
    made = Registry.of({"toys": ToyPlugin(), "more": Plugin()})
    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls, environ=None: made))
    registry.cache_clear()
    outcome = generate(run, *asked)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("peak memory: 2.50 GB in the decoder, 1.2 MB of it weights")
    assert outcome.out.endswith("evaluations: 12 calls of the denoiser, with up to 4 rows each\n")
    assert "as many calls as the pictures need" in run("generate", "an owl", "--model", "toy", *asked).out  # type: ignore[operator]
    assert list(Path.cwd().iterdir()) == []


def test_without_a_command_there_is_help(run: object) -> None:
    outcome = run()  # type: ignore[operator]
    assert "generate" in outcome.out
    assert outcome.code == 0
    for command in ("generate", "rerun", "plugins", "schedulers", "models"):
        assert run(command, "--help").code == 0  # type: ignore[operator]
    assert run("--version").out == f"sdkit, version {sdkit.__version__}\n"  # type: ignore[operator]
    assert run("generat").code == 2  # type: ignore[operator]


def test_a_huge_fit_is_refused_before_anything_is_resized(run: object) -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    for size, message in (("999999x999999", "does not fit|up to 32768"), ("0x8", "does not fit|pixels")):
        outcome = generate(run, "--image", "a.png", "--fit", "--size", size, "--out", "b.png")
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1
        assert re.search(message, outcome.err)


def test_rerun_does_not_overwrite_its_source(run: object) -> None:
    generate(run, "--out", "fox.png")
    outcome = run("rerun", "fox.png", "--out", "./fox.png")  # type: ignore[operator]
    assert outcome.code == 2
    assert "also an input" in outcome.err


def test_an_existing_file_of_the_default_name_is_kept(run: object) -> None:
    assert generate(run, "--seed", "3").out == "a-fox-3.png\n"
    assert generate(run, "--seed", "3", "--steps", "2").out == "a-fox-3-again1.png\n"


def test_a_plugins_own_mistake_is_one_line_too(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("boom\nand more")

    monkeypatch.setattr(sdkit.Euler, "step", broken)
    outcome = generate(run, "--scheduler", "euler", "--out", "a.png")
    assert outcome.code == 1
    assert outcome.err.startswith("Error: RuntimeError: boom and more; in step 1 of 6")
    assert outcome.err.count("\n") == 1
    monkeypatch.setenv("SDKIT_DEBUG", "1")
    with pytest.raises(RuntimeError, match="boom"):
        main(["generate", "a fox", "--model", "toy", "--scheduler", "euler", "--out", "a.png"])


def test_a_terminal_sees_progress(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    outcome = generate(run, "--out", "a.png", "--steps", "5")
    assert outcome.code == 0
    assert "denoising" in outcome.err
    assert "5/5" in outcome.err
