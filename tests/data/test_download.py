"""Downloads from a server on loopback that works, is slow, fails, sends incorrect data or does not exist."""

import errno
import fcntl
import importlib.util
import os
import pty
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from official_files import (
    Server,
    archive_of,
    archive_source,
    serving,
    table_of,
    tables_source,
    use_small_files,
    write,
)
from training_commands import REPOSITORY

from cifar10_accel.data import cifar_sources, download
from cifar10_accel.data.cifar_files import (
    CIFAR10,
    CIFAR10_BINARY,
    CIFAR10_PICKLED,
    CIFAR100,
    CifarFiles,
    FileFormat,
    NoDataError,
    digest_of,
)
from cifar10_accel.data.cifar_sources import unpack_archive, unpack_tables
from cifar10_accel.errors import InputError, OutOfResourcesError

Files = dict[str, dict[str, bytes]]
EACH = pytest.mark.parametrize("official", [CIFAR10, CIFAR100], ids=lambda official: official.dataset)

# A separate process that downloads from the server of the test: argv is the URL and the folder.
FETCHER = """
import logging, sys, pytest
from pathlib import Path
from official_files import Server, archive_of, archive_source, use_small_files
from cifar10_accel.data import download
from cifar10_accel.data.cifar_files import CIFAR10
logging.basicConfig(level=logging.INFO)
files = use_small_files(pytest.MonkeyPatch())
source = archive_source(Server(sys.argv[1]), archive_of(files["cifar-10-batches-py"]))
download.fetch(CIFAR10, Path(sys.argv[2]), sources=[source])
"""


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    return use_small_files(monkeypatch)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "a folder" / "data"


@pytest.fixture
def archive(files: Files) -> bytes:
    return archive_of(files[CIFAR10_PICKLED.folder])


def assert_installed(data_dir: Path, file_format: FileFormat, files: Files, official: CifarFiles = CIFAR10) -> None:
    """Check that the official files of the format are there, and no other files."""
    assert sorted(path.name for path in data_dir.iterdir()) == [".fetch.lock", file_format.folder]
    assert {path.name: path.read_bytes() for path in (data_dir / file_format.folder).iterdir()} == files[
        file_format.folder
    ]
    assert [path.name for path, _ in official.verify(data_dir)] == list(file_format.digests)


def assert_nothing_installed(data_dir: Path) -> None:
    assert CIFAR10.locate(data_dir) is None
    assert CIFAR100.locate(data_dir) is None
    assert not [path for path in data_dir.glob("cifar-*") if path.is_dir()]


@EACH
def test_archive_becomes_the_official_pickles(
    files: Files, server: Server, data_dir: Path, official: CifarFiles
) -> None:
    pickles = official.formats[0]
    source = archive_source(server, archive_of(files[pickles.folder]), official)
    download.fetch(official, data_dir, sources=[source])
    assert_installed(data_dir, pickles, files, official)
    download.fetch(official, data_dir, sources=[source])
    assert len(server.requests) == 1, "files that are present were downloaded again"


def test_both_data_sets_in_one_folder(files: Files, server: Server, data_dir: Path) -> None:
    """One does not count as the other, and the download of one leaves the other alone."""
    for official in (CIFAR10, CIFAR100):
        assert official.locate(data_dir) is None
        content = archive_of(files[official.formats[0].folder])
        download.fetch(official, data_dir, sources=[archive_source(server, content, official)])
    assert len(server.requests) == 2
    for official in (CIFAR10, CIFAR100):
        assert [path.name for path, _ in official.verify(data_dir)] == list(official.formats[0].digests)


def test_archive_of_the_other_data_set_is_refused(files: Files, server: Server, data_dir: Path) -> None:
    source = archive_source(server, archive_of(files[CIFAR10_PICKLED.folder]), CIFAR100)
    with pytest.raises(NoDataError, match=r"contains no CIFAR-100, .*'cifar-10-batches-py'.*get .*cifar-100-python"):
        download.fetch(CIFAR100, data_dir, sources=[source])
    assert_nothing_installed(data_dir)


def test_sources_by_default() -> None:
    """The archive that a message tells to get by hand is the last source of its data set."""
    for official in (CIFAR10, CIFAR100):
        site = cifar_sources.OFFICIAL_SITE[official.dataset]
        assert cifar_sources.SOURCES[official.dataset][-1] is site
        assert site.file_format in official.formats
        assert {source.file_format in official.formats for source in cifar_sources.SOURCES[official.dataset]} == {True}


def test_tables_become_the_official_binary_files_in_order(files: Files, server: Server, data_dir: Path) -> None:
    download.fetch(CIFAR10, data_dir, sources=[tables_source(server, files[CIFAR10_BINARY.folder])])
    assert_installed(data_dir, CIFAR10_BINARY, files)


@EACH
def test_partial_file_is_resumed(files: Files, server: Server, data_dir: Path, official: CifarFiles) -> None:
    content = archive_of(files[official.formats[0].folder])
    source = archive_source(server, content, official)
    data_dir.mkdir(parents=True)
    (data_dir / f"{source.files[0].name}.part").write_bytes(content[:1000])
    download.fetch(official, data_dir, sources=[source])
    assert server.requests == [(f"/{source.files[0].name}", "bytes=1000-")]
    assert_installed(data_dir, official.formats[0], files, official)


def test_complete_partial_file_needs_no_network(files: Files, server: Server, data_dir: Path, archive: bytes) -> None:
    data_dir.mkdir(parents=True)
    (data_dir / "cifar-10-python.tar.gz.part").write_bytes(archive)
    download.fetch(CIFAR10, data_dir, sources=[archive_source(server, archive)])
    assert server.requests == []
    assert_installed(data_dir, CIFAR10_PICKLED, files)


@pytest.mark.parametrize("left_over", [b"x" * 1000, b"x" * 10_000_000], ids=["shorter", "longer"])
def test_partial_file_of_something_else_is_replaced(
    files: Files, server: Server, data_dir: Path, archive: bytes, left_over: bytes
) -> None:
    data_dir.mkdir(parents=True)
    (data_dir / "cifar-10-python.tar.gz.part").write_bytes(left_over)
    download.fetch(CIFAR10, data_dir, sources=[archive_source(server, archive)])
    assert server.requests[-1] == ("/cifar-10-python.tar.gz", None)
    assert_installed(data_dir, CIFAR10_PICKLED, files)


def test_partial_file_and_a_server_without_ranges(files: Files, server: Server, data_dir: Path, archive: bytes) -> None:
    source = archive_source(server, archive)
    server.pages["/cifar-10-python.tar.gz"].has_ranges = False
    data_dir.mkdir(parents=True)
    (data_dir / "cifar-10-python.tar.gz.part").write_bytes(archive[:1000])
    download.fetch(CIFAR10, data_dir, sources=[source])
    assert_installed(data_dir, CIFAR10_PICKLED, files)


def test_broken_connections_are_taken_up_again(files: Files, server: Server, data_dir: Path, archive: bytes) -> None:
    source = archive_source(server, archive)
    server.pages["/cifar-10-python.tar.gz"].bytes_per_connection = len(archive) // 4 + 1
    download.fetch(CIFAR10, data_dir, sources=[source])
    assert len(server.requests) == 4
    assert_installed(data_dir, CIFAR10_PICKLED, files)


def inject_fault(server: Server, fault: str) -> None:
    page = server.pages["/cifar-10-python.tar.gz"]
    if fault == "truncated":
        page.has_ranges, page.bytes_per_connection = False, 5000
    elif fault == "stalled":
        page.num_stalled_connections = 99
    elif fault == "404":
        page.status, page.content = 404, b"not found"
    elif fault == "one bit":
        page.content = page.content[:-1] + bytes([page.content[-1] ^ 1])
    elif fault == "another page":
        page.content = b"<html>please log in</html>"
    elif fault == "too long":
        page.content, page.has_length = bytes(30 << 20), False


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("truncated", "at byte 5000 of"),
        ("stalled", "ReadTimeoutError at byte"),
        ("404", "HTTP 404"),
        ("one bit", "expected"),
        ("another page", "the server has 26 bytes, expected"),
        ("too long", "expected"),
    ],
)
def test_failing_source_is_replaced_by_the_next_and_alone_is_an_error(
    files: Files,
    server: Server,
    data_dir: Path,
    archive: bytes,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    reason: str,
) -> None:
    monkeypatch.setattr(download, "READ_SECONDS", 1.0)
    bad = archive_source(server, archive)
    inject_fault(server, fault)
    with pytest.raises(NoDataError, match=reason) as caught:
        download.fetch(CIFAR10, data_dir, sources=[bad])
    assert "\n" not in str(caught.value)
    assert str(data_dir) in str(caught.value)
    (official_archive,) = cifar_sources.OFFICIAL_SITE["cifar10"].files
    assert official_archive.url in str(caught.value), "no steps to take by hand"
    assert_nothing_installed(data_dir)
    if "expected" in reason:
        assert not list(data_dir.glob("*.part")), "damaged bytes were kept"

    download.fetch(CIFAR10, data_dir, sources=[bad, tables_source(server, files[CIFAR10_BINARY.folder])])
    assert_installed(data_dir, CIFAR10_BINARY, files)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem", "REQUESTS_CA_BUNDLE: /nowhere/ca.pem does not exist"),
        ("CURL_CA_BUNDLE", "/nowhere/ca.pem", "CURL_CA_BUNDLE: /nowhere/ca.pem does not exist"),
        ("HTTPS_PROXY", "socks5h://me:secret@127.0.0.1:9", "the proxy socks5h://...@127.0.0.1:9 needs PySocks"),
        ("ALL_PROXY", "socks4://127.0.0.1:9", "the proxy socks4://127.0.0.1:9 needs PySocks"),
        ("HTTPS_PROXY", "nothing://me:secret@127.0.0.1:9", "unsupported scheme nothing"),
    ],
)
def test_certificates_and_proxies_that_cannot_work_are_named(
    variable: str, value: str, message: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, value)
    monkeypatch.setitem(sys.modules, "socks", None)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "socks" else find_spec(name))
    with pytest.raises(NoDataError) as raised:
        download.fetch(CIFAR10, data_dir)
    assert message in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_network_fails_fast(data_dir: Path, archive: bytes) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but not listening
        dead = archive_source(Server(f"http://127.0.0.1:{closed.getsockname()[1]}"), archive)
        start = time.monotonic()
        with pytest.raises(NoDataError, match="ConnectionError"):
            download.fetch(CIFAR10, data_dir, sources=[dead, dead])
    assert time.monotonic() - start < 5


@EACH
def test_archive_put_there_by_hand_is_used(
    data_dir: Path, files: Files, monkeypatch: pytest.MonkeyPatch, official: CifarFiles
) -> None:
    content = archive_of(files[official.formats[0].folder])
    source = archive_source(Server("http://nowhere"), content, official)
    monkeypatch.setitem(cifar_sources.OFFICIAL_SITE, official.dataset, source)
    data_dir.mkdir(parents=True)
    (data_dir / source.files[0].name).write_bytes(content)
    download.fetch(official, data_dir, sources=[])
    assert [path.name for path, _ in official.verify(data_dir)] == list(official.formats[0].digests)


@pytest.mark.parametrize(
    ("official", "archive_name", "digest"),
    [(CIFAR10, "cifar-10-python.tar.gz", "c58f30"), (CIFAR100, "cifar-100-python.tar.gz", "eb9058")],
    ids=["cifar10", "cifar100"],
)
def test_damaged_archive_put_there_by_hand_is_an_error(
    data_dir: Path, official: CifarFiles, archive_name: str, digest: str
) -> None:
    data_dir.mkdir(parents=True)
    (data_dir / archive_name).write_bytes(b"half of it")
    with pytest.raises(InputError, match=rf"{archive_name}: damaged, MD5 is \w+, expected {digest}") as caught:
        download.fetch(official, data_dir)
    assert not isinstance(caught.value, NoDataError), "auto would hide it"
    assert_nothing_installed(data_dir)


def evil_member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 4) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size if kind == tarfile.REGTYPE else 0, "../../evil"
    return member


@pytest.mark.parametrize(
    "member",
    [
        evil_member("../evil"),
        evil_member("cifar-10-batches-py/../../evil"),
        evil_member("/tmp/evil"),
        evil_member("data_batch_1"),
        evil_member("cifar-10-batches-py/evil"),
        evil_member("cifar-10-batches-py/data_batch_1", tarfile.SYMTYPE),
        evil_member("cifar-10-batches-py/data_batch_1", tarfile.LNKTYPE),
        evil_member("cifar-10-batches-py/data_batch_1", tarfile.FIFOTYPE),
        evil_member("cifar-10-batches-py/data_batch_1", size=1 << 20),
        evil_member("cifar-100-python/train"),
    ],
    ids=lambda member: f"{member.name} type {member.type.decode()} size {member.size}",
)
def test_members_that_do_not_belong_are_refused(
    files: Files,
    server: Server,
    tmp_path: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    member: tarfile.TarInfo,
) -> None:
    monkeypatch.setattr(cifar_sources, "MAX_MEMBER_BYTES", (1 << 20) - 1)
    source = archive_source(server, archive_of(files[CIFAR10_PICKLED.folder], member))
    with pytest.raises(NoDataError, match=rf"member '{member.name}' .* does not belong"):
        download.fetch(CIFAR10, data_dir, sources=[source])
    assert_nothing_installed(data_dir)
    assert not list(tmp_path.rglob("evil"))


def test_archive_that_lacks_a_batch_is_refused(files: Files, server: Server, data_dir: Path) -> None:
    without = {name: content for name, content in files[CIFAR10_PICKLED.folder].items() if name != "data_batch_3"}
    with pytest.raises(NoDataError, match="data_batch_3: cannot be read"):
        download.fetch(CIFAR10, data_dir, sources=[archive_source(server, archive_of(without))])
    assert_nothing_installed(data_dir)


def test_tables_with_other_images_are_refused(files: Files, tmp_path: Path) -> None:
    batch = bytearray(files[CIFAR10_BINARY.folder]["test_batch.bin"])
    batch[5000] ^= 1
    table = tmp_path / "test.parquet"
    table.write_bytes(table_of(files[CIFAR10_BINARY.folder]["data_batch_1.bin"], bytes(batch)))
    with pytest.raises(InputError, match="the batch from image 20 on is not official"):
        unpack_tables([table], tmp_path, CIFAR10_BINARY)


def test_unpacked_archive_takes_no_modes_from_it(files: Files, tmp_path: Path, archive: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(archive)
    folder = write(tmp_path / "folder", {})
    unpack_archive([tmp_path / "a.tar.gz"], folder, CIFAR10_PICKLED)
    assert {path.name for path in folder.iterdir()} == set(files[CIFAR10_PICKLED.folder])
    assert all(path.stat().st_mode & 0o111 == 0 for path in folder.iterdir())


def test_full_disk_has_its_own_exit_code(
    server: Server, data_dir: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = archive_source(server, archive)

    def full(*_: object) -> Iterator[int]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_receive", full)
    with pytest.raises(OutOfResourcesError, match="no space"):
        download.fetch(CIFAR10, data_dir, sources=[source])


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NoDataError, match="data: cannot be written"):
        download.fetch(CIFAR10, tmp_path / "file" / "data", sources=[])


def start_fetcher(server: Server, data_dir: Path, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCHER, server.url, str(data_dir)],
        stderr=stderr,
        text=True,
        env={"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests' / 'support'}", "TERM": "xterm"},
    )


def test_progress_on_a_terminal_and_silence_elsewhere(server: Server, data_dir: Path, archive: bytes) -> None:
    archive_source(server, archive)
    quiet = start_fetcher(server, data_dir)
    assert quiet.communicate(timeout=60) == (None, "")

    terminal, stderr = pty.openpty()
    fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    shown = start_fetcher(server, data_dir / "other", stderr)
    assert shown.wait(timeout=60) == 0
    text = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    os.close(stderr)
    assert "cifar-10-python.tar.gz" in text
    assert "/s" in text
    assert "0:00:00" in text
    assert "unpacking and verifying" in text


def first_line_of(processes: list[subprocess.Popen[str]]) -> str:
    """Return the first line that any of the processes writes to stderr."""
    with selectors.DefaultSelector() as selector:
        for process in processes:
            assert process.stderr is not None
            selector.register(process.stderr, selectors.EVENT_READ)
        ready = selector.select(timeout=60)
        return str(ready[0][0].fileobj.readline()) if ready else ""  # type: ignore[union-attr]


def test_two_processes_download_once(files: Files, server: Server, data_dir: Path, archive: bytes) -> None:
    archive_source(server, archive)
    server.pages["/cifar-10-python.tar.gz"].num_stalled_connections = 1  # until both have started
    processes = [start_fetcher(server, data_dir) for _ in range(2)]
    assert "another process is downloading" in first_line_of(processes)
    server.released.set()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert [ranges for _, ranges in server.requests] == [None, f"bytes={len(archive) // 2}-"], "not one download"
    assert_installed(data_dir, CIFAR10_PICKLED, files)


def test_another_process_takes_over_from_a_killed_one(
    files: Files, server: Server, data_dir: Path, archive: bytes
) -> None:
    source = archive_source(server, archive)
    server.pages["/cifar-10-python.tar.gz"].num_stalled_connections = 1
    process = start_fetcher(server, data_dir)
    part = data_dir / "cifar-10-python.tar.gz.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    num_kept = part.stat().st_size
    assert num_kept > 0
    assert_nothing_installed(data_dir)

    download.fetch(CIFAR10, data_dir, sources=[source])
    assert server.requests[-1] == ("/cifar-10-python.tar.gz", f"bytes={num_kept}-")
    assert_installed(data_dir, CIFAR10_PICKLED, files)


def test_real_images_in_a_table_become_the_official_file(real_data_dir: Path, tmp_path: Path) -> None:
    found = CIFAR10.locate(real_data_dir)
    assert found is not None
    _, test, _ = CIFAR10.read(*found)
    table = tmp_path / "test.parquet"
    table.write_bytes(table_of(np.concatenate([test.labels[:, None], test.pixels], axis=1).tobytes()))
    unpack_tables([table], tmp_path, CIFAR10_BINARY)
    assert digest_of((tmp_path / "test_batch.bin").read_bytes(), "sha256") == (
        "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"
    )
