"""`python -m flowinfer` and the console script."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Run the command line; an interrupt while it is being imported is one too."""
    # Threads that spin at barriers make a loaded machine many times slower; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    came: list[int] = []
    code = 130
    try:
        from flowinfer.startup import GARBAGE_OBJECTS, STARTUP

        STARTUP.is_command = True
        gc.set_threshold(GARBAGE_OBJECTS)
        from flowinfer.output.secrets import learn_environment
        from flowinfer.output.terminal import guard
        from flowinfer.streams import make_safe, take_signals

        came = take_signals()
        make_safe()
        guard()
        learn_environment(os.environ)
        code = _run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    code = 128 + came[0] if came and code == 130 else code
    if _has_lost_a_device():
        sys.stderr.flush()
        os._exit(code)  # standard output has taken all; destructors would end the process with an abort
    sys.exit(code)


def _has_lost_a_device() -> bool:
    errors = sys.modules.get("flowinfer.errors")
    return errors is not None and bool(errors.DeviceLost.kept)


def _run() -> int:
    """Return the exit code of the command; standard output has then taken all that was written."""
    from flowinfer.errors import FlowInferError, ReaderGone

    code: object = 0
    try:
        try:
            _refuse_lost_folder()
            from flowinfer.cli import run

            run()
        except SystemExit as ended:
            code = ended.code
        sys.stdout.flush()
    except ReaderGone:  # fails no pipeline; what the command found out before still counts
        pass
    except FlowInferError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    return code if isinstance(code, int) else int(code is not None)


def _refuse_lost_folder() -> None:
    from flowinfer.errors import UsageError

    try:
        os.getcwd()
    except OSError as error:
        raise UsageError("the working folder is gone: change to one that is there") from error


if __name__ == "__main__":
    main()
