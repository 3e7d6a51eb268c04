"""A real Triton to compare with: the one inside the wheel `nvidia-pytriton`.

The wheel is only unpacked, into a cache, never installed: what it depends on would conflict with
what Slipway depends on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support import call, free_port

TRITON = "nvidia-pytriton==0.7.0"
NUMPY = "numpy==1.26.4"
"""For Triton's Python backend, which was built before numpy 2 and crashes with it."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class Unobtainable(Exception):
    """This machine cannot have Triton; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A running Triton."""

    http_port: int
    grpc_port: int


def install() -> Path:
    """The folder of an unpacked Triton, downloaded if the cache does not hold it yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "slipway"
    # Triton's Python backend runs models in the Python of these tests, so there is one per Python.
    home = cache / f"{TRITON}-python{PYTHON}"
    if not home.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _unpack(cache, Path(scratch, "home"))
            # Renamed when whole: this run may be killed, and another be doing the same.
            try:
                Path(scratch, "home").rename(home)
            except OSError:
                if not home.is_dir():
                    raise
    return home


def _unpack(cache: Path, home: Path) -> None:
    for requirement, folders in {
        TRITON: ("pytriton/tritonserver/", "nvidia_pytriton.libs/"),
        NUMPY: ("numpy/", "numpy.libs/"),
    }.items():
        with zipfile.ZipFile(_download(cache, requirement)) as wheel:
            wheel.extractall(home, [name for name in wheel.namelist() if name.startswith(folders)])
    server = home / "pytriton/tritonserver"
    stub = server / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        raise Unobtainable(f"{TRITON} has no Python backend for Python {PYTHON}")
    installed = Path(shutil.copy(stub, server / "backends/python"))
    for executable in (installed, server / "bin/tritonserver"):
        executable.chmod(0o755)


def _download(cache: Path, requirement: str) -> Path:
    pattern = requirement.replace("-", "_").replace("==", "-") + "-*.whl"
    if not list(cache.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--dest", str(cache), requirement],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise Unobtainable(f"pip cannot download {requirement}: {done.stderr.strip()}")
    return next(cache.glob(pattern))


def command(home: Path, repository: Path, http_port: int, grpc_port: int) -> list[str]:
    """To be run in `home`, with `variables` in its environment."""
    server = home / "pytriton/tritonserver"
    return [
        str(server / "bin/tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={server / 'backends'}",
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--allow-metrics=false",
        "--exit-timeout-secs=5",
    ]


def variables(home: Path) -> dict[str, str]:
    library = sysconfig.get_config_var("LIBDIR")
    return {
        "LD_LIBRARY_PATH": f"{library}:{home / 'nvidia_pytriton.libs'}",
        "OPENBLAS_NUM_THREADS": "1",
    }


@contextmanager
def triton(home: Path, repository: Path, log: Path, *options: str) -> Iterator[Peer]:
    """Triton as a process of its own, on free ports of the loopback; ended with SIGTERM."""
    http_port, grpc_port = free_port(), free_port()
    started = command(home, repository, http_port, grpc_port)
    environment = os.environ | variables(home)
    with log.open("wb") as output:
        # The Python inside Triton heeds no PYTHONPATH, and looks for numpy in its folder first.
        process = subprocess.Popen(
            [*started, *options], cwd=home, env=environment, stdout=output, stderr=output
        )
    try:
        _await_ready(process, http_port, log)
        yield Peer(http_port, grpc_port)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if call(port, "GET", "/v2/health/ready")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"Triton did not start: {log.read_text()[-4000:]}")
