"""Write docs/names.md from the labels of the core's and sdkit-samplers' components.

python tools/names_page.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdkit.cli.listing import names_for

PAGE = Path(__file__).parent.parent / "docs" / "names.md"
TOOLS = {
    "a1111": "A1111",
    "comfyui": "ComfyUI",
    "diffusers": "diffusers",
    "invokeai": "InvokeAI",
    "k-diffusion": "k-diffusion",
    "sdcpp": "sd.cpp",
}
HEAD = """# Names in other tools

Every name in the tables below works wherever sdkit asks for a scheduler or a spacing. Upper and lower case do not
matter unless two names differ only in that (`Beta` and `beta`, see below).

```sh
sdkit generate "a fox" --scheduler "DPM++ 2M Karras"                 # A1111 before 1.9, and InvokeAI's dpmpp_2m_k
sdkit generate "a fox" --scheduler "DPM++ 2M" --spacing Automatic    # A1111 from 1.9 on: its default, here karras
sdkit generate "a fox" --scheduler dpmpp_2m --spacing karras         # ComfyUI
sdkit schedulers --for a1111                                         # these tables for one tool; --json for programs
```

- **Scheduler and spacing in one name.** A spacing's name may follow a scheduler's after a space, `_` or `+`:
  `DPM++ 2M SDE Exponential`, `dpmpp_2m_sde_k`, `euler+karras`, `ddim_trailing`.
- **Automatic** is the spacing that A1111 takes for a sampler if none is chosen; the column *Automatic* has it. In a
  file from before 1.9 a sampler's name alone meant `uniform`: `sdkit_samplers.names.from_a1111` reads the three fields
  of such a file.
- **diffusers** has classes with options: `DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++",
  use_karras_sigmas=True)` is `dpmpp-2m-sde` on `karras`. An option without a counterpart is refused. The mapping in a
  `scheduler_config.json` is read by `sdkit_samplers.names.from_diffusers`, with its noise schedule and what the network
  predicts.
- **Beta and beta.** A1111's `Beta` puts quantiles on sigma (`beta-sigma`), ComfyUI's and sd.cpp's `beta` on times
  (`beta`). They differ only by case, so case decides; `BETA` is refused.
- **DPM2, DPM2 a, 3M SDE.** A1111 (and ComfyUI, but for 3M) drops the last level before clean. sdkit does so if told:
  `--scheduler DPM2 --spacing "drop-penultimate(of='karras')"`.
- **Not here:** Heun++, CFG++ (a way of guidance), RES 2S, Karras Exponential and logit-normal; asked for them, sdkit
  says what to take. `gits` needs the file of its table: `table(file='gits.json')`.

`~` marks what is related and gives another result; all else is the same method, though noise may be drawn otherwise.

This page is written by `python tools/names_page.py`; a test holds it to the code.
"""


def _cell(labels: list[dict[str, str]]) -> str:
    marks = ("~ " if label["fidelity"] == "~" else "" for label in labels)
    return "<br>".join(f"{mark}`{label['name']}`" for mark, label in zip(marks, labels, strict=True)) or "-"


def _table(kind: str, names: dict[str, dict[str, Any]]) -> list[str]:
    automatic = ["Automatic"] if kind == "schedulers" else []
    head = ["sdkit", *automatic, *TOOLS.values()]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    remarks = []
    for rows in zip(*(names[tool][kind] for tool in TOOLS), strict=True):
        if rows[0]["plugin"] not in ("core", "samplers"):
            continue
        own = [f"`{rows[0]['name']}`", *([f"`{rows[0]['automatic']}`"] if automatic else [])]
        lines.append(f"| {' | '.join([*own, *(_cell(row['labels']) for row in rows)])} |")
        for tool, row in zip(TOOLS.values(), rows, strict=True):
            remarks += [f"- {tool} `{of['name']}`: {of['remark']}." for of in row["labels"] if of["remark"]]
    return [*lines, "", *remarks]


def page() -> str:
    """The page's text."""
    names = {tool: names_for(tool) for tool in TOOLS}
    schedulers, spacings = (_table(kind, names) for kind in ("schedulers", "spacings"))
    return "\n".join([HEAD, "## Schedulers", "", *schedulers, "", "## Spacings", "", *spacings]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
