"""The same under atheris, which follows the coverage: python -m tests.fuzz.fuzz_atheris [libFuzzer's options].

Needs `pip install atheris`, which is no dependency of ours: it has wheels for few Pythons.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> int:
    """Fuzz until something fails, or as long as libFuzzer's options say (-max_total_time=60)."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        print("fuzz: no atheris here: pip install atheris", file=sys.stderr)
        return 0
    with atheris.instrument_imports(include=["sshrec.recording"]):
        attempts: Any = importlib.import_module("tests.fuzz.attempts")

    def once(content: bytes) -> None:
        attempts.read(content)
        attempts.judge(content)
        attempts.tampered(content)

    corpus = Path(tempfile.mkdtemp(prefix="sshrec-fuzz-"))
    for number, content in enumerate(attempts.seeds()):
        (corpus / str(number)).write_bytes(content)
    options = sys.argv[1:] or ["-max_total_time=60"]
    atheris.Setup([sys.argv[0], f"-artifact_prefix={corpus}/", *options, str(corpus)], once)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
