"""Check that a wheel has every module and data file: check_wheel.py REPOSITORY WHEEL."""

import subprocess
import sys
import zipfile
from pathlib import Path

# Folders of the repository, and their paths in the wheel.
FOLDERS = {
    "minitron/": "minitron/",
    "conversion/": "minitron/conversion/",
    "space/": "minitron/space/",
    "modeling_nemotron/": "modeling_nemotron/",
}

repository, wheel = map(Path, sys.argv[1:])
tracked = subprocess.run(
    ["git", "-C", repository, "ls-files", *FOLDERS],
    capture_output=True,
    text=True,
    check=True,
).stdout.splitlines()
wanted = {
    installed + name.removeprefix(folder)
    for name in tracked
    for folder, installed in FOLDERS.items()
    if name.startswith(folder) and not (repository / name).is_symlink()
}
held = set(zipfile.ZipFile(wheel).namelist())
missing = sorted(wanted - held)
if missing:
    sys.exit(f"{wheel.name} lacks {', '.join(missing)}: name them in setup.cfg")
print(f"{wheel.name}: all {len(wanted)} files of the packages")
