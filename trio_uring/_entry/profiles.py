"""Layer 5, `python -m trio_uring doctor --profile NAME`: what to add to the confinement of a container or service.

Knows the forms in which these are written, and nothing of what this machine allows: the same words serve where the image is built
and where it runs.
"""

from __future__ import annotations

import json
from typing import Final

# All that a run asks for beyond what Trio on epoll does; eventfd2 every profile has.
SYSTEM_CALLS: Final = ("io_uring_setup", "io_uring_enter", "io_uring_register")

_RULE: Final = json.dumps({"names": list(SYSTEM_CALLS), "action": "SCMP_ACT_ALLOW"}, indent=2)

_LIMITS: Final = """\
A ring of the default size (512 entries) takes about 100 KiB of locked memory of a process without CAP_IPC_LOCK on Linux 6.14
and newer; a smaller one is tried where that does not fit. Kernel workers count as threads of the process (pids limits).
"""

_CONTAINER: Final = """\
# The default profile allows none of these. Take a copy of the profile that is in use and add to its "syscalls":
{rule}
# Then start the container with
#   {start}
# and look with
#   {look}
{limits}"""

_SYSTEMD: Final = """\
# /etc/systemd/system/NAME.service.d/io_uring.conf
[Service]
# Only where the unit has a SystemCallFilter= without @system-service, which has it: the group of {calls}.
SystemCallFilter=@aio
# Only where LimitMEMLOCK= is set lower, and the service has no CAP_IPC_LOCK.
LimitMEMLOCK=8M
# Then: systemctl daemon-reload && systemctl restart NAME
{limits}"""


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())


PROFILES: Final = {
    "docker": _CONTAINER.format(
        rule=_RULE,
        start="docker run --security-opt seccomp=PROFILE.json --ulimit memlock=8388608 IMAGE",
        look="docker run --security-opt seccomp=PROFILE.json IMAGE python -m trio_uring doctor",
        limits=_comment(_LIMITS),
    ),
    "podman": _CONTAINER.format(
        rule=_RULE,
        start="podman run --security-opt seccomp=PROFILE.json --ulimit memlock=8388608 IMAGE"
        "   (the profile: /usr/share/containers/seccomp.json)",
        look="podman run --security-opt seccomp=PROFILE.json IMAGE python -m trio_uring doctor",
        limits=_comment(_LIMITS),
    ),
    "systemd": _SYSTEMD.format(calls=", ".join(SYSTEM_CALLS), limits=_comment(_LIMITS)),
}
