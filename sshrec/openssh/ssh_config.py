"""ssh_config(5) for a laptop: the block that has plain ssh come to a bastion with its agent and the certificate.

Text alone; where the files are is told.
"""

from __future__ import annotations

from pathlib import Path

from sshrec.openssh.destinations import GATEWAY


def quoted(value: str) -> str:
    """A value for a line of ssh_config: no token is expanded in it, and blanks do not end it."""
    value = value.replace("%", "%%")
    return f'"{value}"' if any(character in value for character in " \t#'") else value


def block(
    bastion: str,
    user: str,
    certificate: Path | None,
    key: Path | None,
    *,
    port: int = 22,
    known_hosts: Path | None = None,
    nodes: str | None = None,
) -> str:
    """What `Host BASTION` is to say.

    `certificate`: its file, so that ssh offers what the agent holds for it and nothing else, None where there is
    none; `key`: None where an agent holds it, else its file. `nodes`: patterns of host names to go to through the
    bastion without naming it, whose keys are in `known_hosts` (None: ssh's own file) under the gateway's names for
    them. (HostKeyAlias knows no tokens; HostName does, and nothing resolves it there.)
    """
    own = [f"    IdentityFile {quoted(str(key or certificate))}", "    IdentitiesOnly yes"] if certificate else []
    if key:
        own.append(f"    CertificateFile {quoted(str(certificate))}")
    lines = [
        f"Host {quoted(bastion)}",
        f"    User {quoted(user)}",
        *([f"    Port {port}"] if port != 22 else []),
        "    # Your agent signs for the hop from there; it keeps the key.",
        "    ForwardAgent yes",
        *own,
        "    # The agent, if it is another one than SSH_AUTH_SOCK says:",
        "    #IdentityAgent ~/.ssh/agent.sock",
    ]
    if nodes:
        lines += [
            "",
            f"Host {nodes}",
            f"    HostName %h.{GATEWAY}",
            f"    ProxyCommand ssh -A {bastion} sshrec-proxy %r %n %p",
            *own,
        ]
        if known_hosts:
            lines.append(f"    UserKnownHostsFile {quoted(str(known_hosts))}")
    return "".join(f"{line}\n" for line in lines)
