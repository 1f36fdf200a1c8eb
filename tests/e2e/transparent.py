"""The block of ~/.ssh/config that makes a lab's targets reachable as if the bastion were not there."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.lab import Lab, Laptop
from tests.lab.parts import program


class Through:
    """A laptop whose ssh_config has the block. Programs find it by `config`, or as `ssh -F`'s `options`."""

    def __init__(self, lab: Lab, user: str | Laptop = "joe", bastion: str = "bastion") -> None:
        self.lab, self.laptop = lab, lab.laptop(user)
        self.config = self.laptop.directory / "through"
        known = self.laptop.directory / "gateway_known_hosts"
        told = lab.ssh("-A", bastion, "sshrec config", user=user, check=True).stdout.decode()
        _, _, nodes = told.partition("\n\nHost ")
        block, _, lines = nodes.partition("\n\n# ~/.ssh/known_hosts")
        known.write_text("".join(f"{line}\n" for line in lines.splitlines()[1:]))
        self.config.write_text(
            f"Host {block.replace('ssh -A', f'ssh -F {self.laptop.ssh_config} -A')}\n"
            f"    UserKnownHostsFile {known}\n"
            "Host *\n"
            "    GlobalKnownHostsFile /dev/null\n"
            "    StrictHostKeyChecking yes\n"
            "    UpdateHostKeys no\n"
            "    IdentityFile none\n"
            "    BatchMode yes\n"
            "    ConnectTimeout 20\n"
        )

    @property
    def options(self) -> list[str]:
        """For ssh, scp and sftp."""
        return ["-F", str(self.config)]

    def run(
        self,
        name: str,
        *args: str | Path,
        input: bytes | None = None,  # noqa: A002 - subprocess.run's word
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 90,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ssh, scp or sftp (with the block), or another program, to its end; rsync and git find their ssh."""
        ssh = f"ssh {shlex.join(self.options)}"
        stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        options = self.options if name in ("ssh", "scp", "sftp") else []
        return subprocess.run(
            [program(name), *options, *map(str, args)],
            env={**self.laptop.env, "RSYNC_RSH": ssh, "GIT_SSH_COMMAND": ssh, **(env or {})},
            cwd=cwd,
            capture_output=True,
            timeout=timeout,
            **stdin,
        )

    def popen(self, *args: str) -> subprocess.Popen[bytes]:
        """Start ssh with a pipe at each of its streams; the caller ends it."""
        return subprocess.Popen(
            [program("ssh"), *self.options, *args],
            env=self.laptop.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
