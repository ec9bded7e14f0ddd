"""Hosts of a small cluster on one machine: Linux namespaces that are connected by virtual cables and a bridge.

A host has its own network, hostname, process ids, /tmp, /dev/shm and disk (`LOCAL_DISK`); the rest of the file system,
`Hosts.folder` above all, is shared. Nothing of it is visible in the machine's own network, and all of it is gone when
the process that started it is gone, however that ends.

    with start_hosts(folder) as hosts:
        hosts["nodea"].run("ping", "-c1", "nodeb")
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_commands import REPOSITORY

ADDRESSES = {"nodea": "10.77.0.1", "nodeb": "10.77.0.2", "head": "10.77.0.3"}
LOCAL_DISK = Path("/srv")  # on each host a folder of its own, which a power cut leaves as it is
PROGRAMS = ("unshare", "nsenter", "ip", "nft", "mount")
NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
# The first process of a host; it reads a pipe of this process, so that the host ends with it.
FIRST_PROCESS = r"""
set -e
name=$1 own=$2; shift 2
hostname "$name"
mount -t proc proc /proc
mount --bind "$own/disk" /srv
mount --bind "$own/hosts" /etc/hosts
mount --bind /dev/null /etc/resolv.conf
mount --rbind /tmp /mnt
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
for shared in "$@"; do
    case "$shared" in /tmp/*) mkdir -p "$shared"; mount --bind "/mnt/${shared#/tmp/}" "$shared";; esac
done
umount -l /mnt
ip link set lo up
echo ready
read -r _ || true
"""


class Command:
    """A command that runs on a host, with its output in a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self.log = process, log

    def output(self) -> str:
        """Return what the command has written so far, both streams."""
        return self.log.read_text(errors="replace")

    def poll(self) -> int | None:
        """Return the exit code; None while the command runs."""
        return self._process.poll()

    def wait(self, timeout: float = 240) -> int:
        """Return the exit code (negative: the signal that ended it); at the timeout the test fails with the output."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {timeout:.0f} s:\n{self.output()}") from None

    def wait_for(self, text: str, timeout: float = 120) -> None:
        """Return as soon as the output contains the text; the test fails if it does not come."""
        until = time.monotonic() + timeout
        while text not in self.output():
            assert time.monotonic() < until, f"no {text!r} after {timeout:.0f} s:\n{self.output()}"
            assert self.poll() is None or text in self.output(), f"ended without {text!r}:\n{self.output()}"
            time.sleep(0.1)

    def send_signal(self, number: int) -> None:
        """Send a signal to the command itself, not to what it has started."""
        for child in psutil.Process(self._process.pid).children():
            child.send_signal(number)

    def kill(self) -> None:
        """Kill the command and all of its descendants."""
        if self.poll() is None:
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with _already_gone():
                    process.kill()
            self._process.wait()


class Host:
    """One machine; it is on after its creation."""

    def __init__(self, name: str, folder: Path, shared: list[Path], switch: "subprocess.Popen[bytes]") -> None:
        self.name, self.address = name, ADDRESSES[name]
        self._own, self._shared, self._switch = folder / "hosts" / name, shared, switch
        self._num_logs = 0
        (self._own / "disk").mkdir(parents=True)
        self.write_etc_hosts()
        self.boot()

    def boot(self) -> None:
        """Switch the host on if it is off."""
        if not self.is_on():
            words = ["bash", "-c", FIRST_PROCESS, self.name, self.name, self._own, *self._shared]
            self._first = _unshare([*NAMESPACES, "--fork", "--kill-child"], words)
            far = f"p-{self.name}"
            subprocess.run(_inside(self._switch, "ip", "link", "del", far), check=False, capture_output=True)
            _must(_inside(self._switch, "ip", "link", "add", far, "type", "veth", "peer", "name", f"x-{self.name}"))
            _must(_inside(self._switch, "ip", "link", "set", f"x-{self.name}", "netns", str(self._first_pid())))
            _must(_inside(self._switch, "ip", "link", "set", far, "master", "br0", "up"))
            number = self.address.rsplit(".", 1)[1]
            mac = f"02:00:00:00:00:0{number}"  # always the same, since the others remember it
            self.run("ip", "link", "set", f"x-{self.name}", "name", "eth0", "address", mac).check_returncode()
            self.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0").check_returncode()
            self.run("ip", "addr", "add", f"fd77::{number}/64", "dev", "eth0", "nodad").check_returncode()
            self.run("ip", "link", "set", "eth0", "up").check_returncode()

    def is_on(self) -> bool:
        """Return True if the host has been switched on and not off again."""
        return hasattr(self, "_first") and self._first.poll() is None

    def power_off(self) -> None:
        """Kill everything on the host at once; the kernel still resets its connections, so that the peers see it."""
        if self.is_on():
            os.kill(self._first_pid(), signal.SIGKILL)
            self._first.wait()

    def start(
        self, *command: str | Path, cwd: Path | None = None, log: Path | None = None, **environment: str
    ) -> Command:
        """Start a command on the host, with this process's environment and what is given; `cwd`: the shared folder."""
        self._num_logs += 1
        log = log or self._own / f"command-{self._num_logs}.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                self._entering(command, cwd),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
                start_new_session=True,
            )
        return Command(process, log)

    def run(self, *command: str | Path, timeout: float = 240, cwd: Path | None = None, **environment: str) -> Any:
        """Run a command on the host and return the finished process with its output, as `subprocess.run` does."""
        return subprocess.run(
            self._entering(command, cwd),
            timeout=timeout,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        )

    def processes(self, text: str = "") -> list[psutil.Process]:
        """Return the host's processes with the text in their command line, oldest first."""
        found = []
        for process in psutil.Process(self._first_pid()).children(recursive=True) + self._entered():
            with _already_gone():
                if text in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(set(found), key=lambda process: process.create_time())

    def cut_cable(self) -> None:
        """Disconnect the host from the network; nobody is told."""
        _must(_inside(self._switch, "ip", "link", "set", f"p-{self.name}", "down"))

    def plug_in_cable(self) -> None:
        """Undo `cut_cable`."""
        _must(_inside(self._switch, "ip", "link", "set", f"p-{self.name}", "up"))

    def drop_incoming(self, rule: str) -> None:
        """Drop the packets that an nftables rule matches, such as `tcp dport != 29500 tcp flags & (syn|ack) == syn`."""
        chain = "add chain inet firewall input { type filter hook input priority 0; }"
        rules = f"add table inet firewall; {chain}; add rule inet firewall input {rule} drop"
        self.run("nft", rules).check_returncode()

    def open_firewall(self) -> None:
        """Undo `drop_incoming`."""
        self.run("nft", "flush", "ruleset").check_returncode()

    def write_etc_hosts(self, *lines: str) -> None:
        """Write the host's /etc/hosts: localhost and the given lines (default: address and name of every host)."""
        known = lines or [f"{address} {name}" for name, address in ADDRESSES.items()]
        (self._own / "hosts").write_text("".join(f"{line}\n" for line in ("127.0.0.1 localhost", *known)))

    def restore(self) -> None:
        """Make the host as it was at the start, but for its disk: on, connected, no firewall, all names known."""
        self.boot()
        self.plug_in_cable()
        self.open_firewall()
        self.write_etc_hosts()

    def _first_pid(self) -> int:
        return _child_pid(self._first)

    def _entering(self, command: tuple[str | Path, ...], cwd: Path | None) -> list[str]:
        return _inside(self._first, *command, cwd=cwd or self._shared[0])

    def _entered(self) -> list[psutil.Process]:
        """Return the host's processes that are not descendants of its first one: started by `start` or `run`."""
        namespace = os.readlink(f"/proc/{self._first_pid()}/ns/pid")
        found = []
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/ns/pid") == namespace and process.pid != self._first_pid():
                    found.append(process)
            except OSError:
                continue
        return found


class Hosts(Mapping[str, Host]):
    """The hosts by name; `folder` is on a disk that all of them see."""

    def __init__(self, folder: Path, hosts: dict[str, Host]) -> None:
        self.folder, self._hosts = folder, hosts

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hosts)

    def __len__(self) -> int:
        return len(self._hosts)


@contextmanager
def start_hosts(folder: Path) -> Iterator[Hosts]:
    """Context with the hosts nodea, nodeb and head; they share `folder`, the repository and this interpreter.

    Tests that need it are skipped, with the reason, where it cannot be had.
    """
    _skip_unless_possible()
    bridge = "ip link add br0 type bridge && ip link set br0 up && echo ready && read"
    switch = _unshare(["--net"], ["bash", "-c", bridge])
    shared = [folder, REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)]
    hosts: dict[str, Host] = {}
    try:
        for name in ADDRESSES:
            hosts[name] = Host(name, folder, shared, switch)
        yield Hosts(folder, hosts)
    finally:
        for host in hosts.values():
            host.power_off()
        switch.kill()
        switch.wait()


def need_programs(*names: str) -> None:
    """Skip the test if one of the programs is not installed; folders of system programs count too."""
    for name in names:
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            pytest.skip(f"{name} is not installed")


def _skip_unless_possible() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("network namespaces are a feature of Linux")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    need_programs(*PROGRAMS)
    trial = subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"no namespaces here: {trial.stderr.strip()}")


def _unshare(namespaces: list[str], words: list[Any]) -> "subprocess.Popen[bytes]":
    """Start a command in namespaces of its own and wait until it has written "ready"."""
    process = subprocess.Popen(
        ["unshare", *namespaces, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdout.readline() != b"ready\n":
        raise RuntimeError(process.stderr.read().decode())
    return process


def _child_pid(process: "subprocess.Popen[bytes]") -> int:
    """Return the process inside: the child if `unshare` has forked, else the process itself."""
    children = psutil.Process(process.pid).children()
    return children[0].pid if "unshare" in Path(f"/proc/{process.pid}/comm").read_text() else process.pid


def _inside(process: "subprocess.Popen[bytes]", *command: str | Path, cwd: Path = Path("/")) -> list[str]:
    """Return the command line that runs a command in the namespaces of a process."""
    return ["nsenter", f"--target={_child_pid(process)}", "--all", f"--wdns={cwd}", *map(str, command)]


def _must(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def _already_gone() -> Iterator[None]:
    with suppress(psutil.NoSuchProcess):
        yield
