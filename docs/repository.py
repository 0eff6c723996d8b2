"""The address of the repository on the web, which the pages of the site link to."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path


def address(folder: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Return the address: that of GitHub Actions, or of the git remote ``origin``; empty if it is not on the web."""
    if name := environment.get("GITHUB_REPOSITORY"):
        return f"{environment.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}"
    asked = ["git", "-C", str(folder), "remote", "get-url", "origin"]
    remote = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    parts = re.fullmatch(r"(?:https://(?:[^@/]*@)?|(?:ssh://)?git@)([\w.-]+)[:/]([\w./-]+?)(?:\.git)?/?", remote)
    return f"https://{parts[1]}/{parts[2]}" if parts else ""


def theme_options(url: str) -> dict[str, object]:
    """Return furo's options for a link to the repository below every page, and on GitHub to the source of the page."""
    if not url:
        return {}
    icon = {"name": "Repository", "url": url, "html": "Repository", "class": ""}
    source = {"source_repository": url, "source_branch": "main", "source_directory": ""}
    return {"footer_icons": [icon]} | (source if url.startswith("https://github.com/") else {})
