"""A process that imports the product once, then forks one child per order: a command costs milliseconds, not imports.

Runs under the shim. Every line of standard input is an order as JSON: ``program`` (Python source), ``arguments``
(sys.argv[1:]), ``environment`` (for the shim, which reads it in the child), ``out`` and ``err`` (files). The answer
is the child's exit code, negative for a signal.
"""

import ctypes
import json
import os
import sys
import traceback

import cache.cli
import cache.reader
import cache.writer
import shared.datasets.folder
import teacher_server.cli
import teacher_server.commands
import teacher_server.serve


def work(order: dict) -> int:
    for descriptor, name in ((1, "out"), (2, "err")):
        opened = os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(order["environment"])
    ctypes.CDLL(None).faults_read_environment()
    sys.argv = ["program", *order["arguments"]]
    try:
        exec(compile(order["program"], "<order>", "exec"), {"__name__": "__main__"})  # noqa: S102 - the test's own text
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                code = work(json.loads(line))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                # No clean-up of what the parent owns.
                os._exit(locals().get("code", 1))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


main()
