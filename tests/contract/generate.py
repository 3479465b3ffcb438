"""Write shared/pb/v1 from proto/, or prove with --check that what is committed is what would be written."""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "proto").rglob("*.proto"))


def generate(out: Path) -> list[Path]:
    """Compile every proto file into `out` and return the files written, relative to it."""
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = [f"-I{ROOT / 'proto'}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}"]
    services = [p for p in PROTOS if "service " in p.read_text()]
    for extra, files in (([], PROTOS), ([f"--grpc_python_out={out}"], services)):
        if protoc.main(["protoc", *arguments, *extra, *map(str, files)]) != 0:
            sys.exit("protoc failed")
    return sorted(p.relative_to(out) for p in out.rglob("*_pb2*.py*") if p.suffix in {".py", ".pyi"})


def main() -> None:
    """Generate in place, or compare with a fresh generation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where generated code differs")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as tmp:
        stale = [
            str(name)
            for name in generate(Path(tmp))
            if not (ROOT / name).is_file() or not filecmp.cmp(ROOT / name, Path(tmp) / name, shallow=False)
        ]
    if stale:
        sys.exit(f"generated code differs from proto/: {', '.join(stale)}; run `make proto` and commit the result")


if __name__ == "__main__":
    main()
