"""Fake of W&B's backend: the GraphQL operations that its client uses for runs, files, tables, sweeps, reports."""

import json
from base64 import b64encode
from typing import Any

import yaml
from wandb_records import Run, Sweep

VIEWER = {"id": "VTox", "entity": "me", "username": "me", "email": "me@here", "name": "me", "flags": "{}"}


class Backend:
    """State of the fake server. `unknown` lists the operations that it does not implement."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}  # path after /upload/ -> content
        self.reports: list[dict[str, Any]] = []
        self.unknown: list[str] = []

    def table(self, run: str, name: str) -> dict[str, Any]:
        """Return a run's newest table of this name: columns, and rows with images as the bytes of their files."""
        artifact = [one for one in self.artifacts if one["name"].startswith(f"run-{run}-{name}")][-1]
        files = json.loads(self.uploads[f"manifest-{artifact['id']}"])["contents"]
        assert all(f"{artifact['id']}/{path}" in self.uploads for path in files)
        table = json.loads(self.uploads[f"{artifact['id']}/{name}.table.json"])
        table["data"] = [
            [
                self.uploads[f"{artifact['id']}/{cell['path']}"] if isinstance(cell, dict) and "path" in cell else cell
                for cell in row
            ]
            for row in table["data"]
        ]
        return dict(table)

    def stream(self, run: Run, sent: dict[str, Any]) -> dict[str, Any]:
        """Store what a run streams; rows go to the offset that the client sends, over existing ones."""
        run.is_preempting = run.is_preempting or sent.get("preempting", False)
        for name, lines in sent.get("files", {}).items():
            content, offset = lines["content"], lines["offset"]
            match name:
                case "wandb-history.jsonl":
                    run.history[offset:] = [json.loads(line) for line in content]
                case "wandb-events.jsonl":
                    run.events[offset:] = [json.loads(line) for line in content]
                case "wandb-summary.json":
                    run.summary = json.loads(content[0])
                case "output.log":
                    run.log[offset:] = content
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]
        return {"stopped": run.is_to_stop}

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the data of the response to a GraphQL operation, possibly with more fields than were requested."""
        try:
            return dict(getattr(self, f"_{operation}")(variables))
        except (AttributeError, LookupError, TypeError) as error:
            self.unknown.append(f"{operation}: {error!r}, {list(variables)}")
            return {}

    # --- accounts and projects ---

    def _Viewer(self, _: Any) -> dict[str, Any]:
        return {"viewer": VIEWER | {"teams": {"edges": []}, "apiKeys": {"edges": []}}}

    _GetViewer = _GetDefaultEntity = _Viewer

    def _ServerFeaturesQuery(self, _: Any) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _OrganizationCoreWeaveOrganizationID(self, _: Any) -> dict[str, Any]:
        return {"entity": {"organization": None}}

    def _XXHashDigestsEnabled(self, _: Any) -> dict[str, Any]:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _GetProjects(self, _: Any) -> dict[str, Any]:
        names = {one.project for one in (*self.runs.values(), *self.sweeps.values())}
        more = {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None, "__typename": "Project"}
        edges = [{"node": self._project(name) | more} for name in sorted(names)]
        return {"models": {"edges": edges, "pageInfo": _LAST_PAGE}}

    def _ProjectInternalId(self, asked: Any) -> dict[str, Any]:
        names = {one.project for one in (*self.runs.values(), *self.sweeps.values())}
        return {"project": self._project(asked["projectName"]) if asked["projectName"] in names else None}

    # --- runs ---

    def _UpsertBucket(self, sent: Any) -> dict[str, Any]:
        is_new = sent["name"] not in self.runs
        run = self.runs.setdefault(sent["name"], Run(sent["name"], sent.get("project") or "p", sent.get("sweep")))
        run.config |= json.loads(sent.get("config") or "{}")
        if sent.get("host"):  # the start of a run, not a change of it
            run.num_starts += 1
            run.exit_code, run.is_preempting = None, False
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": is_new}}

    def _RunResumeStatus(self, asked: Any) -> dict[str, Any]:
        run = self.runs.get(asked["name"])
        if run is None:
            return {"model": self._project(asked["project"]) | {"bucket": None}}
        counts = {"eventsLineCount": len(run.events), "logLineCount": len(run.log)}
        tails = {"historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]), "eventsTail": "[]"}
        stored = {"wandbConfig": json.dumps({"t": 1}), "tags": []}
        return {"model": self._project(run.project) | {"bucket": self._bucket(run) | counts | tails | stored}}

    def _CreateRunFiles(self, asked: Any) -> dict[str, Any]:
        names = asked["files"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{asked['run']}/{name}"} for name in names]
        return {"createRunFiles": {"runID": _id("run", asked["run"]), "uploadHeaders": [], "files": files}}

    def _Runs(self, asked: Any) -> dict[str, Any]:
        sweep = json.loads(asked["filters"]).get("sweep")
        runs = [run for run in self.runs.values() if sweep in (None, run.sweep)]
        edges = [{"node": self._bucket(run) | {"projectId": 1}, "cursor": run.name} for run in runs]
        page = {"runCount": len(runs), "readOnly": False, "runs": {"edges": edges, "pageInfo": _LAST_PAGE}}
        return {"project": self._project("p") | page}

    def _Run(self, asked: Any) -> dict[str, Any]:
        return {"project": {"run": self._bucket(self.runs[asked["name"]])}}

    def _RunSampledHistory(self, asked: Any) -> dict[str, Any]:
        keys = json.loads(asked["specs"][0])["keys"]
        rows = [row for row in self.runs[asked["name"]].history if all(key in row for key in keys)]
        return {"project": {"run": {"sampledHistory": [[{key: row[key] for key in keys} for row in rows]]}}}

    # --- artifacts, which is what tables are ---

    def _ArtifactType(self, _: Any) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    _ClientIDMapping = _FetchArtifactType = _ArtifactType

    def _CreateArtifact(self, sent: Any) -> dict[str, Any]:
        details = sent["input"]
        new = {"id": _id("Artifact", len(self.artifacts)), "name": details["artifactCollectionName"]}
        self.artifacts.append(new | {"run": details["runName"], "type": details["artifactTypeName"]})
        sequence = {"id": _id("Sequence", new["name"]), "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": new["id"], "state": "PENDING", "artifactSequence": sequence}}}

    def _CreateArtifactManifest(self, sent: Any) -> dict[str, Any]:
        target = {"id": "F1", "uploadUrl": f"{self.url}/upload/manifest-{sent['artifactID']}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": sent["artifactID"], "file": target}}}

    def _CreateArtifactFiles(self, sent: Any) -> dict[str, Any]:
        edges = []
        for one in sent["input"]["artifactFiles"]:
            path = f"{one['artifactID']}/{one['name']}"
            target = {"storagePath": path, "uploadUrl": f"{self.url}/upload/{path}", "uploadHeaders": []}
            edges.append({"node": target | {"uploadMultipartUrls": None, "artifact": {"id": one["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, sent: Any) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": sent["artifactID"], "digest": "d"}}}

    # --- sweeps ---

    def _UpsertSweep(self, sent: Any) -> dict[str, Any]:
        name = sent["id"] or f"sweep{len(self.sweeps)}"
        if name not in self.sweeps:
            self.sweeps[name] = Sweep(name, sent.get("projectName") or "p", sent["config"])
        sweep = self.sweeps[name]
        sweep.state = sent.get("state") or sweep.state
        found = {"name": name, "project": self._project(sweep.project)}
        return {"upsertSweep": {"sweep": found, "configValidationWarnings": []}}

    def _GetSweep(self, asked: Any) -> dict[str, Any]:
        sweep = self.sweeps.get(asked.get("name") or asked["sweep"])
        if sweep is None:
            return {"project": {"sweep": None}}
        runs = [run for run in self.runs.values() if run.sweep == sweep.name]
        known = {"id": sweep.name, "name": sweep.name, "state": sweep.state, "config": sweep.config, "method": "grid"}
        empty = dict.fromkeys(("description", "displayName", "bestLoss", "updatedAt", "runCountExpected"))
        counts = {"createdAt": "2026-01-01T00:00:00", "runCount": len(runs), "__typename": "Sweep"}
        return {"project": {"sweep": known | empty | counts | {"runs": {"edges": []}}}}

    _SweepWithRuns = _GetSweep

    def _CreateAgent(self, sent: Any) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": sent["sweep"]}}}

    def _Heartbeat(self, sent: Any) -> dict[str, Any]:
        """Return the next commands for an agent, whose id is the sweep's."""
        sweep = self.sweeps[sent["id"]]
        running = [self.runs[name] for name in json.loads(sent["runState"]) if name in self.runs]
        commands: list[dict[str, Any]] = [{"type": "stop", "run_id": run.name} for run in running if run.is_to_stop]
        if sweep.state == "CANCELED":
            commands = [{"type": "exit"}]
        elif sent["runState"] == "{}":
            commands = [self._next_trial(sweep)]
        return {"agentHeartbeat": {"agent": {"id": sent["id"]}, "commands": json.dumps(commands)}}

    def _next_trial(self, sweep: Sweep) -> dict[str, Any]:
        waiting = next((r for r in self.runs.values() if r.sweep == sweep.name and r.state == "preempted"), None)
        if waiting:
            number = int(waiting.name.rpartition("-")[2])
            return _trial("resume", waiting.name, sweep.suggested[number], sweep)
        number, chosen = len(sweep.suggested), sweep.suggest()
        return _trial("run", f"{sweep.name}-{number}", chosen, sweep) if chosen else {"type": "exit"}

    # --- reports ---

    def _upsertView(self, sent: Any) -> dict[str, Any]:
        self.reports.append(sent | {"spec": json.loads(sent["spec"])})
        project = {"id": "UDox", "name": sent["projectName"], "entityName": sent["entityName"]}
        known = {name: sent[name] for name in ("name", "displayName", "description", "type", "spec")}
        view = known | {"id": f"Vmlldzo{len(self.reports)}", "project": project, "updatedAt": "2026-01-01T00:00:00"}
        return {"upsertView": {"view": view, "inserted": True}}

    def _project(self, name: str) -> dict[str, Any]:
        return {
            "id": _id("project", name),
            "internalId": _id("project", name),
            "name": name,
            "entityName": "me",
            "entity": {"id": "RTox", "name": "me"},
        }

    def _bucket(self, run: Run) -> dict[str, Any]:
        identity = {"id": _id("run", run.name), "name": run.name, "displayName": run.name, "sweepName": run.sweep}
        content = {"config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary), "state": run.state}
        empty = dict.fromkeys(("group", "jobType", "commit", "description", "notes", "heartbeatAt"))
        more = {"tags": [], "readOnly": False, "createdAt": "2026-01-01T00:00:00", "systemMetrics": "{}"}
        counts = {"historyLineCount": len(run.history), "historyKeys": None, "user": VIEWER}
        return identity | content | empty | more | counts | {"project": self._project(run.project)}


_LAST_PAGE = {"endCursor": None, "hasNextPage": False, "__typename": "PageInfo"}


def _id(kind: str, name: Any) -> str:
    """Return an id in the server's form, base64 of `kind:name`, which the client parses."""
    return b64encode(f"{kind}:{name}".encode()).decode()


def _trial(kind: str, name: str, chosen: dict[str, Any], sweep: Sweep) -> dict[str, Any]:
    program = yaml.safe_load(sweep.config).get("program", "")
    arguments = {key: {"value": value} for key, value in chosen.items()}
    return {"type": kind, "run_id": name, "program": program, "args": arguments}
