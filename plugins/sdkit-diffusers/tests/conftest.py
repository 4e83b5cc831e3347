"""Makes `tiny`, the builder of tiny models, importable in the tests beside it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
