"""What runs leave in their workdir, for tests of what they survive."""

import contextlib
import json
from pathlib import Path


def metrics(workdir: Path) -> list[dict]:
    """The metrics that are written, without what a clock says."""
    with contextlib.suppress(OSError):
        text = (workdir / 'metrics.jsonl').read_text()
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith('\n')]
        return [{k: v for k, v in line.items() if k not in ('time', 'images_per_second')} for line in lines]
    return []


def checkpoints(workdir: Path) -> list[int]:
    """The whole ones' steps."""
    names = [path.name for path in workdir.glob('checkpoints/*')]
    return sorted(int(name) for name in names if name.isdigit())
