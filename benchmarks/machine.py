"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} cores, {next(models, platform.machine())}"
