"""Licences of model families, as data. Facts read from the texts named by each URL, not legal advice.

A family's licence is that of the weights its makers published; a fine-tune may carry other terms, and the file beside
the weights is what counts. What was not read in the licence's own text carries the term ``unverified``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from sdkit import Licence, Term

__all__ = ["FAMILIES", "combined", "licence", "licences"]

T = TypeVar("T")

_RAIL_USES = Term(
    "use-restrictions",
    "The uses listed in Attachment A are forbidden, and whoever you pass the model or a service on to must be bound to "
    "the same (paragraph 5).",
)
_COPY = Term("licence-copy", "Whoever receives the weights must receive the licence too.")
_NO_COMMERCE = Term("non-commercial", "The weights may not be used for any commercial purpose.")
_RESEARCH = Term("research-only", "The weights may be used for non-commercial research only.")
_UNVERIFIED = Term("unverified", "sdkit has not read this licence's own text; read the file beside the weights.")
_RAIL_DUTIES = (
    "Bind your users to the use restrictions of Attachment A (a ready text is in sdkit's docs).",
    "Give the licence along with the weights and say if you changed them.",
)


def _rail(id: str, name: str, url: str) -> Licence:  # noqa: A002 - the field's name
    return Licence(
        id,
        name,
        "Free to use, also commercially, for all uses but those its Attachment A forbids; your users must be bound to "
        "that too.",
        url,
        _RAIL_DUTIES,
        terms=(_RAIL_USES, _COPY),
    )


def _apache(name: str, url: str) -> Licence:
    return Licence(
        "Apache-2.0",
        f"Apache License 2.0 ({name})",
        "Free to use, also commercially; keep the licence and the notices where you pass the weights on.",
        url,
        ("Give the licence and the notices along with the weights and say if you changed them.",),
        terms=(_COPY,),
    )


def _unread(id: str, name: str, summary: str, url: str, *terms: Term) -> Licence:  # noqa: A002 - the field's name
    return Licence(id, name, summary, url, ("Read the licence beside the weights.",), terms=(*terms, _UNVERIFIED))


OPEN_RAIL_M = _rail(
    "CreativeML-OpenRAIL-M",
    "CreativeML Open RAIL-M, 2022-08-22",
    "https://github.com/CompVis/stable-diffusion/blob/main/LICENSE",
)
OPEN_RAIL_PP_M = _rail(
    "CreativeML-OpenRAIL++-M",
    "CreativeML Open RAIL++-M, 2022-11-24",
    "https://github.com/Stability-AI/stablediffusion/blob/main/LICENSE-MODEL",
)
OPEN_RAIL_PP_M_XL = _rail(
    "CreativeML-OpenRAIL++-M",
    "CreativeML Open RAIL++-M, 2023-07-26",
    "https://github.com/Stability-AI/generative-models/blob/main/model_licenses/LICENSE-SDXL1.0",
)
SDXL_RESEARCH = Licence(
    "SDXL-0.9-Research",
    "SDXL 0.9 Research License",
    "For non-commercial research only.",
    "https://github.com/Stability-AI/generative-models/tree/main/model_licenses",
    ("Use the weights for non-commercial research only.",),
    terms=(_RESEARCH,),
)
STABILITY_COMMUNITY = Licence(
    "Stability-AI-Community",
    "Stability AI Community License, 2024-07-05",
    "Free, also commercially, as long as you and your affiliates make no more than USD 1,000,000 a year; commercial "
    "use is registered.",
    "https://stability.ai/news/license-update",
    (
        "Register commercial use with Stability AI.",
        'Show "Powered by Stability AI" prominently.',
        "Give the licence and its NOTICE file along with the weights.",
        "Follow Stability AI's acceptable use policy.",
    ),
    ("Powered by Stability AI",),
    (
        Term(
            "revenue-ceiling",
            "The licence ends if you and your affiliates make more than USD 1,000,000 a year; then an Enterprise "
            "licence is needed.",
            1_000_000,
        ),
        Term("registration", "Commercial use must be registered with Stability AI."),
        Term("attribution", '"Powered by Stability AI" must be shown prominently.'),
        Term("notice-file", "The NOTICE file must be given along with the weights."),
        Term("use-restrictions", "Stability AI's acceptable use policy applies."),
        _COPY,
    ),
)
TURBO = Licence(
    "Stability-AI-Turbo",
    "Stability AI Non-Commercial Research Community License, 2023-11-28, or Community License, 2024-07-05",
    "First published for non-commercial research, later under the Community License: the file beside your weights "
    "says which one you have.",
    "https://github.com/Stability-AI/generative-models/tree/main/model_licenses",
    ("Read the licence beside the weights.",),
    terms=(
        Term("one-of-several", "Weights of this family were published under two licences, one of them non-commercial."),
        *STABILITY_COMMUNITY.terms,
    ),
)
SVD = Licence(
    "Stability-AI-SVD",
    "Stable Video Diffusion Non-Commercial Community License, 2023-11-21, or Community License, 2024-07-05",
    "First published for non-commercial use, later under the Community License: the file beside your weights says "
    "which one you have.",
    "https://github.com/Stability-AI/generative-models/blob/main/model_licenses/LICENSE-SVD",
    ("Read the licence beside the weights.",),
    terms=TURBO.terms,
)
FLUX_SCHNELL = _apache("FLUX.1 schnell", "https://github.com/black-forest-labs/flux")
FLUX_DEV = Licence(
    "FLUX.1-dev-Non-Commercial",
    "FLUX.1 [dev] Non-Commercial License, 1.1.1",
    "The weights are for non-commercial, non-production use; pictures made with them may be used commercially, but not "
    "to train a competing model.",
    "https://github.com/black-forest-labs/flux/blob/main/model_licenses/LICENSE-FLUX1-dev",
    (
        "Do not run the weights, or adapters made from them, commercially or in production.",
        "Filter what comes out, or look at it, for unlawful content.",
        "Do not train a competing model on the pictures.",
    ),
    terms=(
        _NO_COMMERCE,
        Term("commercial-outputs", "Pictures made with the weights may be used commercially."),
        Term("no-competing-training", "Pictures may not be used to train a competing model."),
        Term("content-filter", "A content filter or a review of outputs is required."),
        Term("derivatives", "Derivatives such as LoRA adapters fall under the same licence."),
    ),
)
FLUX = Licence(
    "FLUX.1",
    "Apache License 2.0 (FLUX.1 schnell) or FLUX.1 [dev] Non-Commercial License, 1.1.1",
    "FLUX.1 schnell is free, also commercially; FLUX.1 dev and its family are non-commercial: find out which one these "
    "weights are.",
    FLUX_DEV.url,
    ("Read the licence beside the weights.",),
    terms=(
        Term("one-of-several", "FLUX.1 schnell is Apache-2.0, FLUX.1 dev is non-commercial."),
        *FLUX_DEV.terms[1:],
    ),
)
LTX2 = _unread(
    "LTX-2-Community",
    "LTX-2 Community License",
    "Free below USD 10,000,000 of yearly revenue.",
    "https://github.com/Lightricks/LTX-2",
    Term("revenue-below", "From USD 10,000,000 of yearly revenue on, a paid licence is needed.", 10_000_000),
)

FAMILIES: dict[str, Licence] = {
    "sd1": OPEN_RAIL_M,
    "sd2": OPEN_RAIL_PP_M,
    "sdxl": OPEN_RAIL_PP_M_XL,
    "sdxl-refiner": OPEN_RAIL_PP_M_XL,
    "sdxl-0.9": SDXL_RESEARCH,
    "sd-turbo": TURBO,
    "sdxl-turbo": TURBO,
    "svd": SVD,
    "sd3": STABILITY_COMMUNITY,
    "sd35": STABILITY_COMMUNITY,
    "flux": FLUX,
    "flux-schnell": FLUX_SCHNELL,
    "flux-dev": FLUX_DEV,
    "flux2-dev": _unread(
        "FLUX-Non-Commercial-2.1",
        "FLUX Non-Commercial License, 2.1",
        "As FLUX.1 dev, with an attribution notice and a duty to say that pictures were made by AI.",
        "https://github.com/black-forest-labs/flux2",
        *FLUX_DEV.terms,
        Term("attribution", "An attribution notice is required."),
        Term("ai-disclosure", "That pictures were made by AI must be said."),
    ),
    "animatediff": _apache("AnimateDiff", "https://github.com/guoyww/AnimateDiff"),
    "wan": _apache("Wan 2.1", "https://github.com/Wan-Video/Wan2.1"),
    "ltx-video": _unread(
        "LTX-Video-OpenRAIL-M",
        "Open RAIL-M, as LTX-Video 0.9.5 and later carry it",
        "An Open RAIL licence: certain uses are forbidden.",
        "https://github.com/Lightricks/LTX-Video",
        _RAIL_USES,
    ),
    "ltx2": LTX2,
    "hunyuan-video": _unread(
        "Tencent-Hunyuan-Community",
        "Tencent Hunyuan Community License",
        "It is said to exclude some regions and large services.",
        "https://github.com/Tencent/HunyuanVideo",
    ),
    "cogvideox": _unread(
        "CogVideoX",
        "Apache License 2.0 (2B) or CogVideoX License (5B)",
        "The 2B model is said to be Apache-2.0, the 5B model has a licence of its own.",
        "https://github.com/THUDM/CogVideo",
    ),
    "film": _apache("FILM", "https://github.com/google-research/frame-interpolation"),
    "rife": Licence(
        "MIT",
        "MIT License (RIFE)",
        "Free to use, also commercially; keep the copyright notice.",
        "https://github.com/hzwer/ECCV2022-RIFE",
        ("Keep the copyright notice where you pass the weights on.",),
        terms=(_COPY,),
    ),
    "insightface": _unread(
        "InsightFace-Models",
        "Terms of InsightFace's models, and of adapters built on them",
        "Said to be for non-commercial research only.",
        "https://github.com/deepinsight/insightface",
        _RESEARCH,
    ),
}
"""Family ids, as `ModelSpec.family` and the command line write them, and their licences."""

_UNKNOWN = Licence("unknown", "unknown licence", "The terms are not known; ask the author before you use it.")


def licence(family: str) -> Licence:
    """The licence of a family's published weights; for a family not known the id is ``"unknown"``, never "free"."""
    return FAMILIES.get(family, _UNKNOWN)


def licences() -> dict[str, Licence]:
    """All families with their licences: what a component of kind ``licence`` gives."""
    return dict(FAMILIES)


def combined(parts: Iterable[Licence]) -> Licence:
    """The licence of a model with adapters: all terms and duties of all of them, so at least as strict as each.

    One part whose terms are not known makes the whole unknown.
    """
    found = list(dict.fromkeys(parts))
    if len(found) == 1:
        return found[0]
    if not found or any(part.id == "unknown" for part in found):
        named = "; ".join(f"{part.name}: {part.summary}" for part in found if part.id != "unknown")
        return Licence(
            "unknown",
            "unknown licence",
            f"The terms of a part are not known; ask its author. {named}".strip(),
            duties=_union(part.duties for part in found),
            attribution=_union(part.attribution for part in found),
            terms=_union(part.terms for part in found),
        )
    return Licence(
        " AND ".join(f"({part.id})" if " OR " in part.id else part.id for part in _by_id(found)),
        "; ".join(part.name for part in found),
        " ".join(part.summary for part in found),
        found[0].url,
        _union(part.duties for part in found),
        _union(part.attribution for part in found),
        _union(part.terms for part in found),
    )


def _by_id(found: list[Licence]) -> list[Licence]:
    return list({part.id: part for part in found}.values())


def _union(groups: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(one for group in groups for one in group))
