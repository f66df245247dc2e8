"""``python -m benchmarks NAME [its options]``: run one of the benchmarks in this folder."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path


def main() -> int:
    here = str(Path(__file__).parent)
    modules = [module for module in pkgutil.iter_modules([here]) if not module.ispkg]
    names = sorted(module.name for module in modules if not module.name.startswith("_"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, add_help=False)
    parser.add_argument("name", choices=names)
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        parser.print_help()
        return 0 if sys.argv[1:] else 2
    arguments, rest = parser.parse_known_args()
    sys.argv = [f"python -m benchmarks {arguments.name}", *rest]
    return int(importlib.import_module(f"benchmarks.{arguments.name}").main() or 0)


if __name__ == "__main__":
    raise SystemExit(main())
