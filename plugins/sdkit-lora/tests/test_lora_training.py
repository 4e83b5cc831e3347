"""Training of LoRAs: what is trained is what the file does, the model stays as it was, and stopping changes nothing."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import sdkit
from sdkit.cli import main
from sdkit_lora import KeyMap, Lora, Session, Settings, inspect, on, open_adapter, targets, train
from sdkit_lora.applying import Bypass
from sdkit_lora.errors import AdapterError
from sdkit_training import Plan, read_folder

LITTLE: dict[str, Any] = {
    "rank": 2,
    "layers": r"up_attention",
    "plan": Plan(steps=4, batch=2, learning_rate=0.02, warm_up=0),
}


@pytest.fixture(scope="module")
def model() -> sdkit.Model[Any]:
    return sdkit.load("emoji")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures with captions; a fourth is the prior's."""
    place = tmp_path_factory.mktemp("pictures")
    (place / "prior").mkdir()
    for name, colour in (("red", "#e03020"), ("green", "#20a040"), ("blue", "#2040c0"), ("prior/grey", "#808080")):
        Image.new("RGB", (128, 128), colour).save(place / f"{name}.png")
        (place / f"{name}.txt").write_text(f"{Path(name).name} square, plain style")
    return place


def session(model: sdkit.Model[Any], folder: Path, **settings: Any) -> Session:
    return Session(model, read_folder(folder), Settings(**{**LITTLE, **settings}))


def fingerprint(model: sdkit.Model[Any]) -> str:
    digest = hashlib.sha256()
    for network in targets(model.encoder, model.denoiser).values():
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
            assert not tensor.requires_grad
    return digest.hexdigest()


def predicted(model: sdkit.Model[Any], prompt: str = "red square, plain style") -> Tensor:
    x = sdkit.AddressedNoise((3, 4)).initial(torch.empty(2, *model.spec.latent.shape(model.spec.latent.size)))
    with torch.no_grad():
        out: Tensor = model.denoiser(x, model.schedule.level(0.6), model.encoder([prompt] * 2))
    return out


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
@pytest.mark.parametrize("which", ["unet", "text", "both"])
def test_the_file_does_what_was_trained_and_the_model_is_as_before(
    model: sdkit.Model[Any], folder: Path, tmp_path: Path, form: str, which: str
) -> None:
    before, bare = fingerprint(model), predicted(model)
    one = session(model, folder, targets=which, format=form, alpha=3.0, layers="attention|qkv")
    told = list(one.training.run())
    assert len(told) == 4 and all(event.gradient > 0 for event in told)
    path = one.save(tmp_path / "new.safetensors", dtype=torch.float32)
    assert fingerprint(model) == before
    with one._scope():
        wanted = predicted(model)
    assert (wanted - bare).abs().max() > 1e-4
    with on(model, Lora(path)) as adapted:
        torch.testing.assert_close(predicted(adapted), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(predicted(model), bare)
    report = inspect(open_adapter(path), model)
    assert report.format == form and set(report.ranks) == {2} and not report.unmatched and not report.problem
    assert {place.split(".")[0] for place in report.matched or ()} == {
        "unet": {"unet"},
        "text": {"text_encoder"},
        "both": {"unet", "text_encoder"},
    }[which]
    assert report.alphas == {3.0: len(one.factors)}


def test_a_training_begins_at_the_model_itself(model: sdkit.Model[Any], folder: Path) -> None:
    one = session(model, folder, conv=True, layers="")
    assert any(place.path == "first" for place in one.factors), "convolutions too"
    with one._scope():
        torch.testing.assert_close(predicted(model), predicted(sdkit.load("emoji")), rtol=0, atol=0)


def test_it_learns_what_it_is_shown(model: sdkit.Model[Any], folder: Path, tmp_path: Path) -> None:
    plan = Plan(steps=60, batch=3, learning_rate=0.01, warm_up=5)
    one = session(model, folder, rank=4, layers="", plan=plan, drop=0.0)

    def mean() -> float:
        """Of draws that training never sees."""
        with torch.no_grad():
            return sum(float(one._objective(step, range(3))) for step in range(10_000, 10_008)) / 8

    before = mean()
    for _ in one.training.run():
        pass
    assert mean() < 0.6 * before
    path = one.save(tmp_path / "squares.safetensors")
    pipe = sdkit.pipeline(model)
    red, blue = (
        pipe(sdkit.Request(f"{c} square, plain style", steps=8, guidance=1, modifiers=(Lora(path),))).images[0]
        for c in ("red", "blue")
    )
    mean_of = [
        torch.tensor(list(image.resize((1, 1), Image.Resampling.BOX).tobytes())).float() for image in (red, blue)
    ]
    assert mean_of[0][0] > mean_of[0][2] and mean_of[1][2] > mean_of[1][0]


def test_a_resumed_training_writes_the_same_file(model: sdkit.Model[Any], folder: Path, tmp_path: Path) -> None:
    settings = Settings(**{**LITTLE, "trigger": "plain style", "min_snr": 5.0})
    straight = train(model, folder, tmp_path / "straight.safetensors", settings)

    def stop(event: Any) -> None:
        if event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, folder, tmp_path / "again.safetensors", settings, on_step=stop)
    assert (tmp_path / "again.checkpoint.safetensors").exists()
    seen: list[int] = []
    again = train(
        model, folder, tmp_path / "again.safetensors", settings, resume=True, on_step=lambda e: seen.append(e.step)
    )
    assert seen == [3, 4]
    assert again.read_bytes() == straight.read_bytes()
    assert not list(tmp_path.glob("*.checkpoint.*")) and not list(tmp_path.glob(".*"))
    with pytest.raises(sdkit.FileError, match=r"'again\.safetensors' is there: its training was finished"):
        train(model, folder, again, settings, resume=True)
    assert again.read_bytes() == straight.read_bytes()


def test_a_checkpoint_of_other_data_is_refused(model: sdkit.Model[Any], folder: Path, tmp_path: Path) -> None:
    one = session(model, folder)
    next(one.training.run())
    one.training.save(tmp_path / "c.safetensors")
    with pytest.raises(sdkit.FileError, match="data="):
        session(model, folder / "prior").training.restore(tmp_path / "c.safetensors")
    with pytest.raises(sdkit.FileError, match="min_snr=None.*5"):
        session(model, folder, min_snr=5.0).training.restore(tmp_path / "c.safetensors")


def test_the_prior_counts_by_its_weight(model: sdkit.Model[Any], folder: Path) -> None:
    def loss(weight: float) -> float:
        settings = Settings(**{**LITTLE, "prior_weight": weight})
        one = Session(model, read_folder(folder), settings, prior=read_folder(folder / "prior"))
        with torch.no_grad():
            return float(one._objective(0, range(2)))

    none, half, whole = loss(0.0), loss(0.5), loss(1.0)
    assert none < half < whole
    assert whole - none == pytest.approx(2 * (half - none), rel=1e-4)


def test_accumulation_sees_the_items_of_the_large_batch(model: sdkit.Model[Any], folder: Path) -> None:
    large = session(model, folder, plan=Plan(steps=1, batch=4))
    small = session(model, folder, plan=Plan(steps=1, batch=2, accumulate=2))
    with torch.no_grad():
        halves = [float(small._objective(0, range(k, k + 2))) for k in (0, 2)]
        assert float(large._objective(0, range(4))) == pytest.approx(sum(halves) / 2, rel=1e-4)


def test_bad_wishes_are_one_sentence(model: sdkit.Model[Any], folder: Path) -> None:
    for settings, match in (
        ({"rank": 0}, "rank"),
        ({"alpha": -1.0}, "alpha"),
        ({"targets": "all"}, "targets"),
        ({"min_snr": 0.0}, "gamma"),
        ({"drop": 1.0}, "captions"),
    ):
        with pytest.raises(sdkit.ParameterError, match=match):
            Settings(**settings)
    with pytest.raises(AdapterError, match="no linear layers"):
        session(model, folder, layers="nothing")


# The command line


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def test_train_inspect_and_generate_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ("--rank", "2", "--steps", "2", "--batch", "2", "--layers", "up_attention", "--trigger", "plain style")
    code = run(
        "lora", "train", "--images", str(folder), "--out", "s.safetensors", *few,
        "--prior", str(folder / "prior"), "--min-snr", "5", "--sheet", "s.png", "--prompts", "red square",
    )  # fmt: skip
    assert code == 0
    assert capsys.readouterr().out.splitlines() == ["s.safetensors", "s.png"]
    with Image.open("s.png") as drawn:
        assert drawn.size[0] > 256
    assert run("lora", "inspect", "s.safetensors", "--model", "emoji", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "diffusers" and told["trigger"] == "plain style" and told["family"] == "emoji"
    assert told["kinds"] == {"LoRA": len(told["matched"])} and told["unmatched"] == []
    assert told["ranks"] == [{"rank": 2, "modules": len(told["matched"])}]
    with safe_open("s.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert metadata["ss_steps"] == "2" and metadata["ss_num_train_images"] == "3"
    assert metadata["sshs_model_hash"] == sdkit.load("emoji").spec.sha256
    assert run("lora", "inspect", "s.safetensors") == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if not line.startswith(" "))
    assert lines["format"] == "diffusers" and lines["ranks"].startswith("2 (")
    assert run("generate", "a fox", "--steps", "1", "--seed", "1", "--out", "a.png", "--lora", "s.safetensors:0.5") == 0
    assert sdkit.read_manifest("a.png").request.modifiers == (Lora("s.safetensors", 0.5),)
    assert sdkit.rerun("a.png").same


def test_errors_of_the_commands_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (("lora", "inspect", "none.safetensors"), "cannot be read"),
        (("lora", "train", "--images", str(folder), "--out", "s.ckpt"), "ends in .safetensors"),
        (("lora", "train", "--images", str(folder), "--out", "no/s.safetensors"), "does not exist"),
        (("lora", "train", "--images", str(tmp_path), "--out", "s.safetensors"), "holds no pictures"),
        (("lora", "train", "--images", str(folder), "--out", "s.safetensors", "--sheet", "s.png"), "--prompts"),
        (("generate", "a fox", "--lora", "none.safetensors:0.5"), "'none.safetensors' does not exist"),
    ):
        assert run(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


# Stable Diffusion, through the same code


@pytest.mark.filterwarnings("ignore")
def test_a_tiny_stable_diffusion_is_trained_and_diffusers_reads_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("sdkit_diffusers")
    tests = Path(__file__).resolve().parents[2] / "sdkit-diffusers" / "tests"
    monkeypatch.setattr(sys, "path", [str(tests), *sys.path])
    tiny = pytest.importorskip("tiny")
    parts = tiny.sd1()
    theirs = tiny.pipeline(diffusers.StableDiffusionPipeline, parts)
    theirs.save_pretrained(tmp_path / "model")
    model = sdkit.load(str(tmp_path / "model"))
    settings = Settings(rank=2, alpha=4.0, targets="both", plan=Plan(steps=3, batch=2, learning_rate=0.05))
    before = fingerprint(model)
    path = train(model, folder, tmp_path / "sd.safetensors", settings)
    assert fingerprint(model) == before
    keys = KeyMap.of(targets(model.encoder, model.denoiser))
    assert set(keys.modules) == {"unet", "text_encoder"}
    assert {place.target for place in open_adapter(path).fitted(keys).deltas} == {"unet", "text_encoder"}

    def outcome(unet: Any, text: Any) -> Tensor:
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            states = text(torch.arange(77)[None]).last_hidden_state
            out: Tensor = unet(x, torch.tensor([500.0]), states).sample
        return out

    mine = outcome(keys.modules["unet"], keys.modules["text_encoder"])
    with on(model, Lora(path)) as one, Bypass(one.denoiser.table), Bypass(one.encoder.table):  # type: ignore[attr-defined]
        changed = outcome(keys.modules["unet"], keys.modules["text_encoder"])
    assert (changed - mine).abs().max() > 1e-3
    pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        theirs.load_lora_weights(str(tmp_path), weight_name="sd.safetensors")
    torch.testing.assert_close(outcome(theirs.unet, theirs.text_encoder), changed, rtol=1e-3, atol=1e-3)
