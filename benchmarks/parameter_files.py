"""How many parameter files of elastix are understood: those in folders, without the results of registrations.

    python benchmarks/parameter_files.py ElastixModelZoo ITKElastix brainglobe-registration

prints the two numbers, and for each file that is refused the reason. Folders are checkouts of
SuperElastix/ElastixModelZoo, InsightSoftwareConsortium/ITKElastix and brainglobe/brainglobe-registration.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from itk_nir.compat.elastix.parameters import understand
from itk_nir.compat.elastix.reading import read_maps
from itk_nir.errors import ItkNirError

#: What parameter files begin to say, and what the files of results say too.
_ASKS = re.compile(r"^\s*\(\s*Transform\s", re.MULTILINE)
_RESULT = re.compile(r"^\s*\((TransformParameters|NumberOfParameters)\s", re.MULTILINE)


def parameter_files(folders: Sequence[Path]) -> Iterator[Path]:
    """All ``.txt`` files that ask elastix for a transform."""
    for folder in folders:
        for file in sorted(folder.rglob("*.txt")):
            text = file.read_text(errors="replace")
            if _ASKS.search(text) and not _RESULT.search(text):
                yield file


def refusal(file: Path) -> str | None:
    """Why a file is refused; None for one that is understood."""
    try:
        understand(read_maps(str(file)))
    except ItkNirError as error:
        return str(error)
    return None


def main(arguments: Sequence[str]) -> int:
    """Count the files of some folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    files = list(parameter_files(parser.parse_args(arguments).folders))
    refused = {file: reason for file in files if (reason := refusal(file)) is not None}
    for file, reason in refused.items():
        print(f"{file}: {reason}")
    print(f"{len(files) - len(refused)} of {len(files)} parameter files are understood")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
