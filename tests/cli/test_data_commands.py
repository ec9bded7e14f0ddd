"""`cifar10-accel data fetch` and `data verify` for both data sets with official files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from official_files import Server, archive_of, archive_source, serving, use_small_files

from cifar10_accel.cli.data import data
from cifar10_accel.data import cifar_sources
from cifar10_accel.data.cifar_files import CIFAR10, CIFAR100, CifarFiles

EACH = pytest.mark.parametrize(
    ("official", "flags"),
    [(CIFAR10, []), (CIFAR10, ["--dataset=cifar10"]), (CIFAR100, ["--dataset=cifar100"])],
    ids=["default", "cifar10", "cifar100"],
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Server of small archives, which are the only sources."""
    files = use_small_files(monkeypatch)
    with serving() as server:
        for official in (CIFAR10, CIFAR100):
            source = archive_source(server, archive_of(files[official.formats[0].folder]), official)
            monkeypatch.setitem(cifar_sources.SOURCES, official.dataset, (source,))
        yield server


def run(*words: str) -> Result:
    return CliRunner().invoke(data, words)


@EACH
def test_fetch_and_verify(server: Server, official: CifarFiles, flags: list[str]) -> None:
    before = run("verify", *flags, "--data-dir=here")
    assert before.exit_code == 3
    assert before.stderr == f"error: here: no {official.title} files; run `{official.fetch_command} --data-dir here`\n"
    words = official.fetch_command.split()[2:]
    fetched = run(*words, "--data-dir=here")  # the command that the message names
    assert (fetched.exit_code, fetched.stdout) == (0, f"{official.title} is in here\n"), fetched.stderr
    verified = run("verify", *flags, "--data-dir=here")
    folder, algorithm, digests = Path("here", official.formats[0].folder), "MD5", official.formats[0].digests
    assert verified.stdout == "".join(f"{folder / name}: {algorithm} as published\n" for name in digests)
    assert verified.exit_code == 0


def test_fetch_of_cifar100_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cifar_sources.SOURCES, "cifar100", ())
    done = run("fetch", "--dataset=cifar100", "--data-dir=here")
    assert (done.exit_code, done.stderr.count("\n")) == (3, 1)
    assert "get https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz" in done.stderr


def test_data_set_without_official_files() -> None:
    done = run("fetch", "--dataset=folder")
    assert done.exit_code == 2
    assert "'folder' is not one of 'cifar10', 'cifar100'" in done.stderr
