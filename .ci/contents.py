"""Does the wheel hold the package and nothing else, and the sdist all that its tests need?

python .ci/contents.py WHEEL SDIST SOURCES
"""

import sys
import tarfile
import zipfile
from pathlib import Path


def main(wheel: str, sdist: str, sources: str) -> int:
    """Print what is missing or too much; 1 if anything is."""
    root = Path(sources)
    package = {p.relative_to(root).as_posix() for p in (root / "xmosaic").rglob("*") if p.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        names = archive.namelist()
    with tarfile.open(sdist) as archive:
        shipped = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    needed = {p for p in needed if not p.endswith((".pyc", ".orig")) and p.split("/")[0] != ".git"}
    problems = {
        "in the package, not in the wheel": package - inside - {p for p in package if p.endswith((".pyc", ".orig"))},
        "in the wheel, not of the package": inside - package,
        "in the repository, not in the sdist": needed - shipped,
    }
    for what, files in problems.items():
        for name in sorted(files):
            print(f"{what}: {name}")
    if not any("licenses/LICENSE" in name for name in names):
        print("no licence in the wheel")
        return 1
    print(f"wheel: {len(inside)} files of the package; sdist: {len(shipped)} files")
    return int(any(problems.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
