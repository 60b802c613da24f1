"""`python -m flowinfer` and the console script."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; an interrupt while it is being imported is one too."""
    # Threads that spin at barriers make a loaded machine many times slower; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from flowinfer.secrets import learn_environment
        from flowinfer.terminal import guard

        guard()
        learn_environment(os.environ)
        from flowinfer.cli import run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
