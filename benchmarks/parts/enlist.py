"""Make packages that run from a tree known to Python, as an editable installation does, where there is no build tool.

    python benchmarks/parts/enlist.py SITE FOLDER...

For each FOLDER with a pyproject.toml, SITE gets what `importlib.metadata` reads: name, version, entry points.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def enlist(site: Path, folder: Path) -> None:
    """Write the `.dist-info` of the project in `folder`."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    place = site / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True, exist_ok=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in points.items()), "")
    ]
    (place / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    for text in sys.argv[2:]:
        enlist(Path(sys.argv[1]), Path(text))
