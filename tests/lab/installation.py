"""Where the lab's processes find sshrec: the checkout and its venv, or a copy that other uids can read."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import sshrec
from tests.lab.parts import LabError

_PACKAGE = Path(sshrec.__file__).parent


@dataclass(frozen=True, slots=True)
class Installation:
    """`programs`: the directory of sshrec and sshrecd; `package`: that of the Python package."""

    programs: Path
    package: Path

    @property
    def gateway(self) -> Path:
        return self.package / "libexec" / "sshrec-gateway"


def find(readers: tuple[int, ...], directory: Path, copy: bool = False) -> Installation:
    """What this interpreter has, if all of the uids `readers` can use it; else a copy in `directory`."""
    here = Installation(Path(sys.prefix) / "bin", _PACKAGE)
    if not copy and all(_usable(here, uid) for uid in readers):
        return here
    made = _copy(directory)
    for uid in readers:
        if not _usable(made, uid):
            raise LabError(
                f"uid {uid} cannot run {Path(sys.executable).resolve()}: use a Python that everybody can"
            )
    return made


def _usable(installation: Installation, uid: int) -> bool:
    """Whether a uid can import the package and run the gateway."""
    commands = [[str(installation.programs / "python"), "-I", "-c", "import sshrec.config"]]
    if installation.gateway.exists():
        commands.append(["/usr/bin/test", "-x", str(installation.gateway)])
    for argv in commands:
        try:
            subprocess.run(
                argv, cwd="/", user=uid, group=uid, extra_groups=[], capture_output=True, timeout=30, check=True
            )
        except (PermissionError, subprocess.CalledProcessError):
            return False
    return True


def _copy(directory: Path) -> Installation:
    """A venv of its own in `directory`, with sshrec and what it depends on."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True, timeout=60)
    python = directory / "bin" / "python"
    site = next((directory / "lib").glob("python*/site-packages"))
    shutil.copytree(_PACKAGE, site / "sshrec", ignore=shutil.ignore_patterns("__pycache__"))
    for name in _dependencies("sshrec"):
        for file in metadata.files(name) or ():
            source = Path(str(file.locate()))
            if ".." in file.parts or "__pycache__" in file.parts or not source.exists():
                continue
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, site / file)
    for entry in metadata.distribution("sshrec").entry_points:
        script = directory / "bin" / entry.name
        script.write_text(
            f"#!{python} -I\nimport sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n"
        )
        script.chmod(0o755)
    subprocess.run(["chmod", "-R", "a+rX", directory], check=True, timeout=60)
    return Installation(directory / "bin", site / "sshrec")


def _dependencies(name: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """The installed distributions that `name` needs at run time, and those that these need."""
    for requirement in metadata.requires(name) or ():
        wanted = re.match(r"[A-Za-z0-9._-]+", requirement)
        if wanted is None or "extra ==" in requirement or wanted[0] in seen:
            continue
        try:
            metadata.distribution(wanted[0])
        except metadata.PackageNotFoundError:
            continue  # for another Python or platform
        seen = _dependencies(wanted[0], seen | {wanted[0]})
    return seen
