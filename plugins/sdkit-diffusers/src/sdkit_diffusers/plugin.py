"""What sdkit reads at discovery. Imports neither torch nor diffusers."""

from __future__ import annotations

from sdkit import Component, hookimpl

__all__ = ["sdkit_components"]

MODIFIERS = (
    ("control", "control:Control", "a control net that reads a picture (edges, depth, a pose)", ("controlnet",)),
    ("t2i-adapter", "adapters:T2I", "a T2I-Adapter that reads a picture", ()),
    ("ip-adapter", "imageprompt:ImagePrompt", "a picture as a prompt (IP-Adapter, plain or plus)", ()),
    ("refiner", "refiner:Refiner", "a second model that goes on from a level, such as XL's refiner", ()),
    ("freeu", "attention:FreeU", "weighs a U-Net's deep layers against what is passed by them", ()),
    ("perturbed-attention", "attention:PerturbedAttention", "guidance away from perturbed self-attention", ("pag",)),
    ("skip-layers", "attention:SkipLayers", "guidance away from skipped layers (SD 3.5)", ("slg",)),
    ("clip-skip", "modifiers:ClipSkip", "reads text from an earlier layer of CLIP, counted as A1111 does", ()),
    ("textual-inversion", "modifiers:TextualInversion", "learned words, meant by their files' names", ("embeddings",)),
    ("embedded-guidance", "modifiers:EmbeddedGuidance", "the scale that FLUX.1 dev and LCM read as an input", ()),
    ("xl-sizes", "modifiers:Sizes", "what Stable Diffusion XL is told of the sizes of pictures and their cut", ()),
    ("refiner-scores", "modifiers:RefinerScores", "the scores of beauty that XL's refiner is told", ()),
)

FRAMES = (
    ("text2video-zero", "zero:TextToVideoZero", "a clip from any U-Net: latents that move, one first frame", ("zero",)),
    (
        "animatediff",
        "animatediff:AnimateDiff",
        "text to video with a motion module (AnimateDiff), windows for any length",
        (),
    ),
    ("ltx", "ltxclip:Ltx", "clips of LTX-Video, from text or from a picture and text", ("ltx-video",)),
    ("svd", "svdclip:Svd", "a picture, moved by Stable Video Diffusion", ("stable-video-diffusion",)),
)


@hookimpl
def sdkit_components() -> list[Component]:
    """The components of this plugin."""
    modifiers = [
        Component("modifier", name, f"sdkit_diffusers.{target}", summary, aliases)
        for name, target, summary, aliases in MODIFIERS
    ]
    frames = [
        Component("frames", name, f"sdkit_diffusers.{target}", summary, aliases)
        for name, target, summary, aliases in FRAMES
    ]
    return [
        *modifiers,
        *frames,
        Component("spacing", "linear-betas", "sdkit_diffusers.betas:LinearBetas", "on the betas of AnimateDiff"),
        Component("adapter-format", "motion-lora", "sdkit_diffusers.motionlora:MotionLora", "AnimateDiff's own names"),
        Component(
            "spacing",
            "stretched",
            "sdkit_diffusers.stretched:Stretched",
            "trailing times that end at a given noise (LTX-Video)",
            ("shift_terminal",),
        ),
        Component(
            "estimator",
            "fake-tensors",
            "sdkit_diffusers.estimating:estimate",
            "memory and evaluations of a request, of any model that computes with torch",
        ),
        Component(
            "model-family",
            "stable-diffusion",
            "sdkit_diffusers.family:StableDiffusion",
            "Stable Diffusion 1.x, 2.x, XL, 3, 3.5 and FLUX.1, from a diffusers folder or one .safetensors file; "
            "LTX-Video and Stable Video Diffusion from a folder",
        ),
    ]
