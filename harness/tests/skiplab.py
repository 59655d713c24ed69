# SPDX-License-Identifier: GPL-2.0-only
"""What of the suite would be skipped, and why, in a profile and on a machine of one's choice.

As a plug-in of pytest (``-p skiplab``) this says it of each test that is chosen, and runs
none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from _pytest.skipping import evaluate_skip_marks

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from linux_um import build  # noqa: E402

# What the plug-in puts before its line.
SKIPS = "skips: "
# The file that stands for the configuration of the finished kernel.
ENV_CONFIG = "SKIPLAB_CONFIG"


def skips(
    directory: Path, profile: str, arch: str, *words: str, kernel: str = "6.12", config: str = ""
) -> dict[str, str]:
    """Return why each test would be skipped, empty when it would not, by its file and name.

    *words* are files of tests and other arguments of pytest, *config* is the text of the
    kernel's configuration where there is such a kernel; *directory* is for a file.
    """
    written = directory / "config"
    written.unlink(missing_ok=True)
    if config:
        written.write_text(config)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), environment.get("PYTHONPATH", "")])
    environment |= {"LINUX_UM_KERNEL": kernel, ENV_CONFIG: str(written)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "skiplab", "-p", "no:cacheprovider",
         "--profile", profile, "--arch", arch, *words],
        cwd=HERE, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(SKIPS)]
    assert len(lines) == 1, done.stdout[-2000:] + done.stderr
    return dict(json.loads(lines[0].removeprefix(SKIPS)))


def _ensure_image(*_words: object, **_options: object) -> SimpleNamespace:
    return SimpleNamespace(config=Path(os.environ[ENV_CONFIG]))


def pytest_configure() -> None:
    """Let nobody build a kernel."""
    build.ensure_image = _ensure_image  # type: ignore[assignment]


@pytest.hookimpl(tryfirst=True)  # type: ignore[misc]
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Print the first reason of each test, in place of running it."""
    found = {
        f"{item.path.name}::{item.name}": "" if skipped is None else skipped.reason
        for item, skipped in ((item, evaluate_skip_marks(item)) for item in session.items)
    }
    print(f"\n{SKIPS}{json.dumps(found)}")
    return True
