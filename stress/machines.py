"""Two machines on one computer: network namespaces joined by a virtual Ethernet cable that can be cut."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from .program import ROOT


class CheckFailed(Exception):
    """A requirement does not hold."""


class Machines:
    """Two machines on one disk: network namespaces, each with a host name and an address known to both."""

    def __init__(self):
        self.spaces = [f"diffunet{os.getpid()}-{machine}" for machine in (0, 1)]
        self.interfaces = [f"cable{os.getpid()}-{machine}"[-15:] for machine in (0, 1)]
        self.addresses = ["10.77.0.1", "10.77.0.2"]
        self.hosts = Path("hosts").absolute()
        names = [f"{address} machine{machine}" for machine, address in enumerate(self.addresses)]
        self.hosts.write_text("\n".join(["127.0.0.1 localhost", *names, ""]))

    def __enter__(self) -> "Machines":
        try:
            for space in self.spaces:
                _ip("netns", "add", space)
            (here, there), (interface, peer) = self.spaces, self.interfaces
            _ip("link", "add", interface, "netns", here, "type", "veth", "peer", "name", peer, "netns", there)
            for space, interface, address in zip(self.spaces, self.interfaces, self.addresses, strict=True):
                _ip("-n", space, "addr", "add", f"{address}/24", "dev", interface)
                _ip("-n", space, "link", "set", "lo", "up")
                _ip("-n", space, "link", "set", interface, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__()
            raise CheckFailed(f"two machines need Linux, iproute2 and root ({error})") from None
        return self

    def __exit__(self, *_) -> None:
        for machine, space in enumerate(self.spaces):
            if Path("/run/netns", space).exists():
                self.kill(machine)
                _ip("netns", "delete", space)

    def start(self, *arguments, folder: Path | None = None) -> list[subprocess.Popen]:
        """Start a process on each machine, in the shared working directory or in `folder`/machineN."""
        started = []
        for machine, space in enumerate(self.spaces):
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc_per_node", 1]
            torchrun += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{self.addresses[0]}:29400"]
            boot = f'mount --bind {self.hosts} /etc/hosts && hostname machine{machine} && exec "$@"'
            command = ["ip", "netns", "exec", space, "unshare", "--uts", "--mount", "sh", "-c", boot, "sh"]
            started.append(
                subprocess.Popen(
                    [str(word) for word in (*command, *torchrun, *arguments)],
                    env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                    cwd=folder / f"machine{machine}" if folder else None,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        return started

    def processes(self, machine: int) -> list[psutil.Process]:
        return [psutil.Process(int(pid)) for pid in _ip("netns", "pids", self.spaces[machine]).split()]

    def kill(self, machine: int) -> None:
        """Send SIGKILL to all processes of this machine."""
        for process in self.processes(machine):
            process.kill()

    def set_link(self, state: str) -> None:
        """Disconnect the machines ("down") or connect them ("up")."""
        _ip("-n", self.spaces[1], "link", "set", self.interfaces[1], state)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
