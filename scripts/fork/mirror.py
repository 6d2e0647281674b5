# SPDX-License-Identifier: GPL-2.0-or-later
"""The package mirror: that of the host's own apt. None is named here."""
from __future__ import annotations

from pathlib import Path

from .common import capture

FORMAT = "$(REPO_URI)|$(ORIGIN)|$(LABEL)|$(SUITE)|$(COMPONENT)"


def release() -> dict[str, str]:
    """/etc/os-release of the host."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key: value.strip("\"'") for key, value in pairs}


def find(given: str | None) -> str:
    """The Debian archive to use; empty where none is known."""
    if given:
        return given
    out = capture(["apt-get", "indextargets", "--format", FORMAT]).stdout
    debian = release().get("ID") == "debian"
    for line in out.splitlines():
        uri, origin, label, _, component = (line.split("|") + [""] * 5)[:5]
        # Before the first `apt-get update` only the address is known.
        known = (origin, label) == ("Debian", "Debian")
        guess = debian and not origin and "security" not in uri
        if component == "main" and (known or guess):
            return uri.rstrip("/")
    return ""


def hosts() -> set[str]:
    """Hosts in the configuration of this host's apt."""
    out = capture(["apt-get", "indextargets", "--format",
                   "$(REPO_URI)"]).stdout
    return {uri.split("/")[2].rsplit("@", 1)[-1]
            for uri in out.splitlines() if uri.count("/") > 1}
