"""Write docs/rules.md from the conformance kit's own catalogue.

python tools/rules_page.py
"""

from __future__ import annotations

from pathlib import Path

from sdkit.testing import catalogue

HEAD = """# Rules

What sdkit demands of the parts of a pipeline, one numbered rule each. The conformance kit has one `check_*` function
per rule; `sdkit conform NAME` tries them on anything installed, and

```python
from sdkit.testing import SchedulerConformance


class TestMine(SchedulerConformance):
    scheduler = Mine()
```

makes a pytest test of each. Skips come from what a part declares; `xfail = {"name": "reason"}` leaves a rule out.

This page is written by `python tools/rules_page.py`; a test holds it to the code.
"""
TITLES = {
    "scheduler": "Schedulers",
    "spacing": "Spacings",
    "schedule": "Noise schedules",
    "parametrization": "Parametrizations",
    "decoder": "Decoders",
    "noise": "Noise",
    "adapter": "Adapters",
    "frames": "Generators of frames",
    "frame_filter": "Filters of frames",
    "frame_sink": "Sinks of frames",
    "plugin": "Plugins",
}


def main() -> None:
    """Write the page."""
    parts = [HEAD]
    for subject, title in TITLES.items():
        parts.append(f"\n## {title}\n")
        for rule in catalogue(subject):
            parts.append(
                f"\n### {rule.id} `{rule.name}`\n\n"
                f"- **Rule:** {rule.text}\n- **Why:** {rule.why}\n- **If it fails:** {rule.hint}\n"
            )
    page = Path(__file__).parent.parent / "docs" / "rules.md"
    page.write_text("".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
