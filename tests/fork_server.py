"""Processes of Python that start in a fraction of a second, because a process forks them that has imported the libraries.

The commands that tests start import torch, transformers, datasets and lm_eval. That takes about ten CPU seconds for each command,
which was most of the time of all tests. A test whose subject is the process itself uses ``sys.executable``: one about imports,
signals, pipes, kills, limits, or options of the interpreter.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import linecache
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import coverage
from fork_client import LATE, MEASURED, NUMBER, process_state

INTERPRETER = sys.executable
"""The real interpreter. A fixture may replace ``sys.executable``, so that the program under test starts forked processes."""
MODULES = (
    *("lm_harmony.api", "lm_harmony.cli.main", "lm_harmony.cli.run", "lm_harmony.cli.study", "lm_harmony.cli.plan"),
    *("lm_harmony.studies.worker", "lm_harmony.studies.plan", "lm_harmony.studies.download"),
)
"""Modules that a server imports, with all that they import."""
FIRST_MODULES = (
    *("torch", "torch._dynamo", "torch.distributed.tensor", "torch.distributed.checkpoint", "scipy.optimize", "scipy.stats"),
    *("pandas", "pyarrow.dataset", "requests", "boto3", "pydantic", "tyro", "rich.console", "sacrebleu", "jinja2", "PIL.Image"),
)
"""Those of them that read no variable of ``HUB``. One process imports them for all servers whose other variables are equal."""
HUB = "HF_"
"""Beginning of the names of variables that may differ between servers forked from one process."""
MOST_SERVERS, MOST_FIRST_SERVERS = 4, 2
"""Numbers of servers that run at the same time. The one that was used longest ago ends when another one is needed."""
SERVE = f"""
import sys
sys.path[0] = {str(Path(__file__).parent)!r}
from fork_server import MODULES, serve
del sys.modules["fork_server"]  # a forked process that imports it has another interpreter
serve(MODULES, sys.argv[1], unread=None)
"""
"""Program of a server in a process that the first one has forked."""
_Servers = dict[frozenset[tuple[str, str]], "ForkServer"]
_SERVERS: _Servers = {}
_FIRST_SERVERS: _Servers = {}
"""Processes that have imported ``FIRST_MODULES``. The servers are forked from them."""


def forked_python(environment: Mapping[str, str] | None = None) -> str:
    """Return a program that tests use like ``sys.executable``: with equal environments, its processes are forked.

    Args:
        environment: all variables of the processes; those of this process if not given.
    """
    wanted = dict(os.environ if environment is None else environment)
    without_hub = {name: value for name, value in wanted.items() if not name.startswith(HUB)}

    def first_server() -> ForkServer:
        return ForkServer([INTERPRETER, __file__], without_hub)

    def server() -> ForkServer:
        first = _server_for(without_hub, _FIRST_SERVERS, MOST_FIRST_SERVERS, first_server)
        return ForkServer([str(first.python), "-c", SERVE], wanted)

    return str(_server_for(wanted, _SERVERS, MOST_SERVERS, server).python)


def _server_for(environment: Mapping[str, str], servers: _Servers, most: int, start: Callable[[], ForkServer]) -> ForkServer:
    """Return the server for an environment. If it is not among ``servers``, start it, and keep at most ``most`` of them."""
    key = frozenset((name, value) for name, value in environment.items() if name not in LATE)
    while key not in servers and len(servers) >= most:
        servers.pop(next(iter(servers))).close()
    servers[key] = servers.pop(key, None) or start()
    return servers[key]


class ForkServer:
    """A running server, and the folder of the program whose processes it forks."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Start the server with ``environment`` and wait until it has imported its modules.

        Args:
            command: command that calls ``serve`` with the folder that is its last argument.
            environment: all variables of the server and of its processes.
        """
        self._folder = TemporaryDirectory(prefix="fork-server-")
        folder = Path(self._folder.name)
        self.python = folder / "python"
        client, given = str(Path(__file__).parent), [INTERPRETER, str(folder), str(self.python)]
        code = f"import sys; sys.path.append({client!r}); from fork_client import main; main(*{given}, *sys.argv[1:])"
        self.python.write_text(f"#!{INTERPRETER} -IS\n{code}\n", encoding="utf-8")
        self.python.chmod(0o755)
        self._process = subprocess.Popen(
            [*command, str(folder)],
            env={name: value for name, value in environment.items() if name not in (MEASURED, "PYTEST_CURRENT_TEST")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said == "ready\n", f"the fork server printed: {said}{self._process.communicate()[0]}"
        atexit.register(self.close)

    def close(self) -> None:
        """End the server. Processes that it has forked go on."""
        with self._process:  # closes the pipes and waits
            self._process.kill()
        self._folder.cleanup()
        atexit.unregister(self.close)


def serve(modules: Iterable[str], folder: str, *, unread: str | None) -> None:
    """Import modules, then fork a process for each request until standard input closes.

    Args:
        modules: the modules.
        folder: folder of the socket and of the state.
        unread: beginning of the names of variables that no module may read. They may differ between the processes.

    Raises:
        AssertionError: a module read such a variable, or started a thread; a forked process would have its locks without the
            thread. The thread of jemalloc, the memory allocator of pyarrow, may run, because jemalloc prepares itself for forks.
    """
    state = process_state(unread)
    gc.disable()
    with _names_of_read_variables() as names:
        for name in modules:
            importlib.import_module(name)
    read = [name for name in sorted(names) if unread is not None and name.startswith(unread)]
    assert not read, f"modules read variables: {read}"
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert len(threads) - threads.count("jemalloc_bg_thd") == 1, (
        f"modules started threads, as without OMP_NUM_THREADS=1: {threads}"
    )
    gc.freeze()  # a collection would write to, and so copy, the memory of all objects
    gc.enable()
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False  # those of torch undo what its import registered, which takes a process 40 ms at its end
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/socket")
    listener.listen(64)
    Path(folder, "state.json").write_text(json.dumps(state), encoding="utf-8")
    print("ready", flush=True)
    while 0 not in select.select([0, listener], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _handle(connection)
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


@contextmanager
def _names_of_read_variables() -> Iterator[set[str]]:
    """Add the names of environment variables to a set when they are read, whether they are set or not."""
    names = set[str]()
    unrecorded = type(os.environ)

    class Recording(unrecorded):  # type: ignore[misc, valid-type]
        def __getitem__(self, name: str) -> str:
            names.add(name)
            return super().__getitem__(name)  # type: ignore[no-any-return]

    os.environ.__class__ = Recording
    yield names
    os.environ.__class__ = unrecorded


def _handle(connection: socket.socket) -> NoReturn:
    """Fork the process that a client asks for, and tell the client its number and its exit status. Kill it if the client ends."""
    head, descriptors, _, _ = socket.recv_fds(connection, NUMBER.size, 3)
    text = connection.recv(NUMBER.unpack(head)[0], socket.MSG_WAITALL) if head else b""
    if not text:  # the client was killed
        os._exit(0)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _execute(*json.loads(text), descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    process = os.pidfd_open(pid)
    with suppress(OSError):  # the client was killed
        connection.sendall(NUMBER.pack(pid))
        if process not in select.select([connection, process], [], [])[0]:
            os.kill(pid, 9)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):
        connection.sendall(NUMBER.pack(status))
    os._exit(0)


def _execute(program: str, words: list[str], folder: str, environment: dict[str, str], descriptors: list[int]) -> NoReturn:
    """Give this process the state of a new interpreter, execute its program, and exit as the interpreter does."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable, sys.orig_argv = program, [program, *words]
    coverage.process_startup()  # if the environment asks for it
    sys.modules["numpy"].random.seed()  # Python's own generator does this by itself
    sys.modules["torch"].default_generator.seed()
    importlib.invalidate_caches()
    status = _status_of(words)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the interpreter reports this at its end
        sys.exit(status)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)  # without the destruction of all modules, which takes most of a second


def _status_of(words: list[str]) -> int:
    """Execute -m MODULE or -c CODE. Return the exit status, or a negative number for the signal that ends the process."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        if words[0] == "-m":
            sys.argv, sys.path[0] = ["-m", *words[2:]], os.getcwd()
            runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]  # as the interpreter does
        else:
            sys.argv, sys.path[0] = ["-c", *words[2:]], ""
            if sys.version_info >= (3, 13):  # where a traceback shows the lines of this code
                linecache.cache["<string>"] = (len(words[1]), None, words[1].splitlines(keepends=True), "<string>")
            exec(compile(words[1], "<string>", "exec"), vars(main))
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return int(end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 - the end of an interpreter
        own = error.__traceback__  # the frame of this function, which the traceback of an interpreter does not have
        error = error.with_traceback(own and own.tb_next)
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    serve(FIRST_MODULES, sys.argv[1], unread=HUB)
