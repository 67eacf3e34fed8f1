"""MPS: what lets the kernels of several processes run on one GPU at the same time, where they would take turns.

NVIDIA's control daemon is asked for where its program is there and none runs; all that a process has to do is to find
its folder in the environment before it first uses CUDA. Nothing here can end a search.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
SWITCH = "AUTOFT_MPS"
PIPES, LOGS, VISIBLE = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_VISIBLE_DEVICES"
# A search begins behind these; whatever hangs, it goes on without MPS, which its imports mostly hide.
ASK_SECONDS, START_SECONDS, CLIENT_SECONDS, END_SECONDS = 2.0, 5.0, 10.0, 1.0
SAID_CHARACTERS = 200

# Waits until whoever holds the other end of its input has closed it, or is gone however that came about.
_GUARD = f'cat >/dev/null; echo quit | {CONTROL}; rm -rf "$0"'
# A context on the first GPU, as every worker will make one, without the seconds that torch takes.
_CLIENT = """
import ctypes, sys
cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
code = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
code = code or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
sys.exit(f"CUDA error {code}" if code else 0)
"""
CLIENT = (sys.executable, "-I", "-S", "-c", _CLIENT)


class Mps:
    """A daemon for this process and those that it starts, from `start` to `close`.

    It ends with this process, whatever ends that. Where one cannot be had, one line says why.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._folder: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._named: tuple[str, ...] = ()

    def start(self) -> None:
        """Start a daemon in a folder of its own and name it in the environment, where nothing speaks against it."""
        if why_not() is not None:
            return
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="autoft-mps-", dir=_short()))
            self._begin(self._folder)
        except OSError as error:
            self.close()
            said = " ".join(str(error).split())[-SAID_CHARACTERS:]
            self._note(f"trials on one GPU take turns: MPS does not start ({said}); {SWITCH}=0 does not try it")

    def close(self) -> None:
        """Ask the daemon to end and take its folder away; it ends once its last client has."""
        for name in self._named:
            os.environ.pop(name, None)
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(END_SECONDS)
        elif self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._guard = None
        self._named = ()

    def _begin(self, folder: Path) -> None:
        """Raises `OSError`."""
        self._named = tuple(name for name in (PIPES, LOGS) if not os.environ.get(name))
        os.environ |= dict.fromkeys(self._named, str(folder))
        # With GPUs hidden the daemon would number those that are left anew, for its clients.
        environment = {name: value for name, value in os.environ.items() if name != VISIBLE}
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _run((CONTROL, "-d"), START_SECONDS, folder / "said", environment)
        _run(CLIENT, CLIENT_SECONDS, folder / "said", dict(os.environ))


def why_not() -> str | None:
    """Why a search starts no daemon here; None where it does."""
    if shutil.which(CONTROL) is None:
        return f"there is no {CONTROL}"
    if os.environ.get(SWITCH) == "0":
        return f"switched off by {SWITCH}=0"
    if os.environ.get(VISIBLE) in ("", "-1"):
        return f"no GPU is visible by {VISIBLE}"
    if os.environ.get(PIPES):
        return f"{PIPES} names one"
    return "one is running already" if _is_running() else None


def visible_gpus(count: int) -> tuple[str, ...]:
    """The first `count` GPUs that this process sees, each as CUDA_VISIBLE_DEVICES names it for a process of its own."""
    named = os.environ.get(VISIBLE)
    return tuple(named.split(",")[:count]) if named else tuple(map(str, range(count)))


def _is_running() -> bool:
    """Whether a daemon answers where one is looked for without a word from the environment."""
    asked, silent = b"get_server_list\n", subprocess.DEVNULL
    try:
        done = subprocess.run([CONTROL], input=asked, stdout=silent, stderr=silent, timeout=ASK_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _run(command: tuple[str, ...], seconds: float, said: Path, environment: dict[str, str]) -> None:
    """Run to the end of the command, not of what it leaves running. Raises `OSError` with what it said in `said`."""
    with said.open("w") as words:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=environment,
            start_new_session=True,
        )
    name = Path(command[0]).name
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # what hangs in a driver cannot be killed
            process.wait(END_SECONDS)
        raise OSError(f"{name} did not end within {seconds:g} seconds") from None
    if code:
        raise OSError(said.read_text(errors="replace").strip() or f"{name} ended with code {code}")


def _short() -> str | None:
    """A folder for sockets, whose paths hold some hundred characters; None for the usual one."""
    return "/tmp" if os.access("/tmp", os.W_OK) else None
