"""Checks that README.md quotes what --help says.

python man/check_help.py [--write]

A quotation is a fenced block after a comment that names the command, `<!-- sshrec play --help -->`.
With --write the blocks are brought up to date.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(
    r"(?ms)(?P<head>^<!-- (?P<command>sshrecd?[^\n]* --help) -->\n+```[a-z]*\n)(?P<text>.*?)(?=^```)"
)


def _said(command: str) -> str:
    """What the installation's command says, 80 columns wide."""
    name, *arguments = command.split()
    program = Path(sys.executable).parent / name
    environment = {"PATH": os.defpath, "COLUMNS": "80", "LANG": "C.UTF-8"}
    result = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout


def main(arguments: list[str]) -> int:
    """Check, or write; the exit status."""
    readme = README.read_text()
    fresh = BLOCK.sub(lambda block: block["head"] + _said(block["command"]), readme)
    if not BLOCK.search(readme):
        print("README.md quotes no --help", file=sys.stderr)
        return 1
    if fresh == readme:
        return 0
    if "--write" in arguments:
        README.write_text(fresh)
        return 0
    print(
        "README.md quotes another --help than the commands give: python man/check_help.py --write", file=sys.stderr
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
