"""identity.json in a sweep's folder: the sweep whose trials the folder has, whatever its file is called later."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar10_accel.errors import SettingsError
from cifar10_accel.files import write_text
from cifar10_accel.sweep.file import Sweep

FILE = "identity.json"
PARAMETERS = ("constants", "searched")


def claim_folder(sweep: Sweep, folder: Path, *, storage: str | None, studies: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of the study that the folder's trials belong to, after recording it. Requires the folder's lock.

    The first sweep that runs in a folder keeps it. The same sweep under another name continues it; another sweep is
    refused, since its trials would get the folders of the first one's.

    Args:
        sweep: The sweep to run.
        folder: Its folder.
        storage: URL of the database; None for the journal in the folder.
        studies: Identities of the studies in the folder's journal by name, for folders of earlier versions.

    Raises:
        SettingsError: The folder belongs to another sweep, or to this one in another storage.
    """
    identity, kind = _plain(sweep.identity()), "journal" if storage is None else "database"
    found = _read(folder)
    if found is None and studies:
        equal = [name for name, other in studies.items() if other == identity]
        name = (equal or list(studies))[0]
        found = {"study": name, "storage": "journal", "sweep": studies[name]}
    if found is None:
        found = {"study": sweep.name, "storage": kind, "sweep": identity}
    require_same_sweep(sweep, found["sweep"], folder, study=found["study"])
    if found["storage"] != kind:
        advice = "leave --storage out" if kind == "database" else "give its --storage"
        raise SettingsError(f"{folder}: the trials there are recorded in a {found['storage']}; {advice}")
    write_text(folder / FILE, json.dumps(found, indent=1) + "\n")
    return str(found["study"])


def require_same_sweep(sweep: Sweep, before: Mapping[str, Any], folder: Path, *, study: str) -> None:
    """Raise `SettingsError`, with what differs, unless this is the identity of the sweep."""
    now = _plain(sweep.identity())
    if before == now:
        return
    changed = [key for key in now if key not in PARAMETERS and before.get(key) != now[key]]
    old, new = ({key: values.get(key) or {} for key in PARAMETERS} for values in (before, now))
    names = dict.fromkeys(parameter for values in (old, new) for key in PARAMETERS for parameter in values[key])
    changed += [name for name in names if any(old[key].get(name) != new[key].get(name) for key in PARAMETERS)]
    raise SettingsError(
        f"{folder}: holds the sweep {study!r}, which differs in {', '.join(changed)}; "
        "give another --dir (and, with --storage, another `name:`), or the file as it was"
    )


def recorded_study(folder: Path) -> str | None:
    """Return the name of the study that the folder's trials belong to; None in a folder of an earlier version."""
    found = _read(folder)
    return None if found is None else str(found["study"])


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        return {key: found[key] for key in ("study", "storage", "sweep")}
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingsError(f"{path}: not readable as a sweep's record; remove it, or give another --dir") from None


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity as JSON gives it back, with lists for tuples."""
    return dict(json.loads(json.dumps(identity)))
