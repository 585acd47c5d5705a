"""A standalone Flink cluster: one JobManager, TaskManagers with one slot each, and its jobs.

The JVMs are started directly, not by Flink's shell scripts, so that their pids are ours; the
memory flags come from the same class that the scripts ask (BashJavaUtils).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

import requests

from connectors.flink_metrics import DONE, job_metrics, live_job
from local import flink_config, flink_home
from local.errors import StackError
from local.preflight import find_java, java_env
from local.processes import LOOPBACK, PROJECT, ServerProcess, tail, wait_until

_MARK = "BASH_JAVA_UTILS_EXEC_RESULT:"
_SUBMITTED = re.compile(r"Job has been submitted with JobID ([0-9a-f]{32})")
_JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"


@dataclass(frozen=True)
class Checkpoints:
    """What the JobManager says about the checkpoints of one job."""

    completed: int
    failed: int
    in_progress: int
    restored: int
    latest_path: str | None
    latest_duration_ms: int | None
    latest_bytes: int | None
    restored_path: str | None


class FlinkProcess:
    """The JobManager or one TaskManager."""

    def __init__(self, cluster: FlinkCluster, name: str, kind: Literal["JM", "TM"]) -> None:
        self.name = name
        self.log_file = cluster.root / "logs" / f"{name}.log"
        self.process = ServerProcess(
            name, cluster.root / "run", cluster.root / "logs" / f"{name}.out"
        )
        self._cluster = cluster
        self._kind = kind
        self._id_file = cluster.root / "run" / f"{name}.id"

    @property
    def resource_id(self) -> str:
        """The name under which the JobManager knows this TaskManager."""
        try:
            return self._id_file.read_text()
        except OSError:
            return ""

    @property
    def alive(self) -> bool:
        """Whether the process lives."""
        return self.process.alive

    @property
    def pid(self) -> int | None:
        """The pid of the living process, or None."""
        return self.process.pid

    def launch(self) -> None:
        """Start the process without waiting for it."""
        if self.process.alive:
            return
        cluster = self._cluster
        jvm, dynamic = cluster.jvm_parameters(self._kind)
        entry = _JOB_MANAGER if self._kind == "JM" else _TASK_MANAGER
        own: list[str] = []
        if self._kind == "TM":
            # A new id at each start: the JobManager may still count the one that was killed.
            resource_id = f"{self.name}-{time.time_ns() // 1_000_000}"
            self._id_file.parent.mkdir(parents=True, exist_ok=True)
            self._id_file.write_text(resource_id)
            own = [f"-Dtaskmanager.resource-id={resource_id}"]
        log4j = (cluster.conf_dir / "log4j.properties").as_uri()
        self.process.spawn(
            [
                str(find_java()),
                *jvm,
                *cluster.java_options(self._kind),
                f"-Dlog.file={self.log_file}",
                f"-Dlog4j.configurationFile={log4j}",
                *("-classpath", cluster.class_path(), entry),
                *("--configDir", str(cluster.conf_dir), *dynamic, *own),
            ],
            env=cluster.env(),
        )

    def start(self) -> None:
        """Start the process and wait until the cluster counts it."""
        self.launch()
        if self._kind == "JM":
            self._cluster.wait_job_manager()
        else:
            self._cluster.wait_task_managers()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def stop(self) -> None:
        """Orderly end."""
        self.process.stop(15)

    def log_tail(self) -> str:
        """The last lines of the log, or of the output when there is no log yet."""
        return tail(self.log_file) or tail(self.process.log_file)


class FlinkCluster:
    """The cluster's processes, and what is asked of it: run, stop, look."""

    def __init__(
        self,
        root: Path,
        *,
        rest_port: int,
        rpc_port: int,
        prometheus_ports: str,
        task_managers: int,
        task_manager_memory: str = "1600m",
        job_manager_memory: str = "1024m",
        settings: Mapping[str, str | int | bool] | None = None,
        host: str = LOOPBACK,
    ) -> None:
        self.root = root
        self.host = host
        self.rest_port = rest_port
        self.rpc_port = rpc_port
        self.conf_dir = root / "conf" / "flink"
        self.data_dir = root / "data" / "flink"
        self.checkpoint_dir = self.data_dir / "checkpoints"
        self.savepoint_dir = self.data_dir / "savepoints"
        self._prometheus_ports = prometheus_ports
        self._task_manager_memory = task_manager_memory
        self._job_manager_memory = job_manager_memory
        self._settings = dict(settings or {})
        self._http = requests.Session()
        self._parameters: dict[str, tuple[list[str], list[str]]] = {}
        self.job_manager = FlinkProcess(self, "jobmanager", "JM")
        self.task_managers: list[FlinkProcess] = []
        # TaskManagers of an earlier start that still live belong to us as well.
        living = [name for name in self._known_names() if self._task_manager(name).alive]
        wanted = [f"taskmanager-{i}" for i in range(task_managers)]
        for name in dict.fromkeys([*wanted, *living]):
            self.task_managers.append(self._task_manager(name))

    def _known_names(self) -> list[str]:
        files = (self.root / "run").glob("taskmanager-*.pid")
        return sorted((file.stem for file in files), key=lambda n: int(n.rsplit("-", 1)[1]))

    def _task_manager(self, name: str) -> FlinkProcess:
        return FlinkProcess(self, name, "TM")

    # --- processes ---------------------------------------------------------------------------

    @property
    def rest_url(self) -> str:
        """The base address of the REST interface and of the web pages."""
        return f"http://{self.host}:{self.rest_port}"

    def env(self) -> dict[str, str]:
        """The environment of every Flink process.

        Thread mode imports pemja and the job's modules inside the TaskManager's process: the
        project and the environment's packages must be on its PYTHONPATH.
        """
        path = [str(PROJECT), str(flink_home.site_packages())]
        inherited = os.environ.get("PYTHONPATH", "")
        path += [part for part in inherited.split(os.pathsep) if part and part not in path]
        return {
            **java_env(),
            "PYTHONPATH": os.pathsep.join(path),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLINK_CONF_DIR": str(self.conf_dir),
            "FLINK_LOG_DIR": str(self.root / "logs"),
            "FLINK_HOME": str(flink_home.FLINK_HOME),
            # PyFlink sets these in a process that uses it, to its own package, without connectors.
            "FLINK_LIB_DIR": str(flink_home.FLINK_HOME / "lib"),
            "FLINK_OPT_DIR": str(flink_home.FLINK_HOME / "opt"),
            # Relative to the working directory where it is not set: no plugin, no metrics.
            "FLINK_PLUGINS_DIR": str(flink_home.FLINK_HOME / "plugins"),
            # One BLAS thread a TaskManager: there is one TaskManager a core.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def class_path(self) -> str:
        """All jars in lib/, flink-dist last, as Flink's own scripts order them."""
        jars = sorted((flink_home.FLINK_HOME / "lib").glob("*.jar"))
        jars.sort(key=lambda jar: jar.name.startswith("flink-dist"))
        return os.pathsep.join(str(jar) for jar in jars)

    def java_options(self, kind: Literal["JM", "TM"]) -> list[str]:
        """`env.java.opts.all` and the process's own: Flink's scripts would pass them, so we do."""
        text = (self.conf_dir / "config.yaml").read_text(encoding="utf-8")
        own = {"JM": "jobmanager", "TM": "taskmanager"}[kind]
        options: list[str] = []
        for name in ("all", own):
            # The value stands behind the key, or folded in the lines below it.
            pattern = rf"^env\.java\.opts\.{name}: (?:>-\n((?:[ \t]+\S.*\n)+)|(\S.*)\n)"
            found = re.search(pattern, text, re.MULTILINE)
            if found:
                options += (found.group(1) or found.group(2)).split()
        return options

    def jvm_parameters(self, kind: Literal["JM", "TM"]) -> tuple[list[str], list[str]]:
        """JVM flags and `-D` settings that divide the process memory, as Flink's scripts do."""
        if kind not in self._parameters:
            home = flink_home.FLINK_HOME
            dist = next(iter((home / "lib").glob("flink-dist-*.jar")))
            done = subprocess.run(
                [
                    *(str(find_java()), "-Xmx128m", "-XX:TieredStopAtLevel=1", "-Xshare:auto"),
                    *("-cp", f"{home / 'bin' / 'bash-java-utils.jar'}{os.pathsep}{dist}"),
                    "org.apache.flink.runtime.util.bash.BashJavaUtils",
                    *(f"GET_{kind}_RESOURCE_PARAMS", "--configDir", str(self.conf_dir)),
                ],
                capture_output=True,
                text=True,
                env=self.env(),
                check=False,
            )
            lines = [line.split(_MARK, 1)[1] for line in done.stdout.splitlines() if _MARK in line]
            if len(lines) != 2:
                log = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
                raise StackError(
                    "flink",
                    "the memory settings cannot be divided",
                    "TASK_MANAGER_MEMORY needs at least 900m",
                    log,
                )
            self._parameters[kind] = (shlex.split(lines[0]), shlex.split(lines[1]))
        return self._parameters[kind]

    def write_config(self) -> None:
        """Write the run folder's copy of the configuration."""
        for folder in (self.checkpoint_dir, self.savepoint_dir, self.data_dir / "tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.root / "logs").mkdir(parents=True, exist_ok=True)
        self._parameters.clear()
        flink_config.write(
            self.conf_dir,
            {
                "rest.address": self.host,
                "rest.bind-address": self.host,
                "rest.port": self.rest_port,
                "jobmanager.rpc.address": self.host,
                "jobmanager.rpc.port": self.rpc_port,
                "jobmanager.memory.process.size": self._job_manager_memory,
                "taskmanager.memory.process.size": self._task_manager_memory,
                "metrics.reporter.prom.port": self._prometheus_ports,
                "execution.checkpointing.dir": self.checkpoint_dir.as_uri(),
                "execution.checkpointing.savepoint-dir": self.savepoint_dir.as_uri(),
                "io.tmp.dirs": str(self.data_dir / "tmp"),
                "python.executable": sys.executable,
                "python.client.executable": sys.executable,
                **self._settings,
            },
        )

    def launch(self) -> None:
        """Start what does not live, without waiting."""
        flink_home.prepare()
        if not self.job_manager.alive:
            self.write_config()
        with ThreadPoolExecutor(2) as pool:  # two short JVMs at once
            list(pool.map(self.jvm_parameters, ("JM", "TM")))
        self.job_manager.launch()
        for task_manager in self.task_managers:
            task_manager.launch()

    def start(self) -> None:
        """Start the cluster and wait until every TaskManager is registered."""
        self.launch()
        self.wait_job_manager()
        self.wait_task_managers()

    def answers(self) -> bool:
        """Whether the JobManager's REST interface answers."""
        try:
            return bool(self._http.get(f"{self.rest_url}/overview", timeout=2).ok)
        except requests.RequestException:
            return False

    def wait_job_manager(self, timeout: float = 90) -> None:
        """Wait until the JobManager's REST interface answers."""
        log = self.job_manager.log_file
        remedy = f"read {log}"
        self.job_manager.process.wait_ready(self.answers, timeout, remedy=remedy, log=log)

    def registered(self) -> int:
        """How many living TaskManagers the JobManager counts."""
        listed = {str(tm["id"]) for tm in self.get("/taskmanagers")["taskmanagers"]}
        return sum(tm.alive and tm.resource_id in listed for tm in self.task_managers)

    def wait_task_managers(self, timeout: float = 90) -> None:
        """Wait until every TaskManager is registered."""
        for task_manager in self.task_managers:

            def known(name: str = task_manager.resource_id) -> bool:
                try:
                    listed = self.get("/taskmanagers")["taskmanagers"]
                except (StackError, requests.RequestException):
                    return False
                return any(tm["id"] == name for tm in listed)

            log = task_manager.log_file
            task_manager.process.wait_ready(known, timeout, remedy=f"read {log}", log=log)

    def free_slots(self) -> int:
        """Slots that no task uses."""
        return int(self.get("/overview")["slots-available"])

    def kill_task_manager(self, index: int) -> None:
        """SIGKILL one TaskManager; `start_task_manager` or `add_task_manager` brings another."""
        self.task_managers[index].kill()

    def start_task_manager(self, index: int) -> FlinkProcess:
        """Start a killed TaskManager anew and wait until it is registered."""
        task_manager = self.task_managers[index]
        task_manager.start()
        return task_manager

    def replace_task_managers(self, *, older_than: float) -> int:
        """Restart the TaskManagers that were started before a time (epoch seconds); how many."""
        old = [one for one in self.task_managers if (one.process.started or 0) < older_than]
        for task_manager in old:
            task_manager.stop()
        for task_manager in old:
            task_manager.launch()
        self.wait_task_managers()
        return len(old)

    def add_task_manager(self) -> FlinkProcess:
        """Start one more TaskManager and wait until it is registered."""
        number = 1 + max((int(tm.name.rsplit("-", 1)[1]) for tm in self.task_managers), default=-1)
        added = self._task_manager(f"taskmanager-{number}")
        self.task_managers.append(added)
        added.start()
        return added

    def remove_task_manager(self) -> None:
        """Stop the newest TaskManager."""
        self.task_managers.pop().stop()

    def stop(self) -> None:
        """Orderly end of all processes, all at once."""
        processes = [*self.task_managers, self.job_manager]
        with ThreadPoolExecutor(len(processes)) as pool:
            list(pool.map(lambda one: one.stop(), processes))

    # --- REST --------------------------------------------------------------------------------

    def _request(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            answer = self._http.request(method, f"{self.rest_url}{path}", timeout=30, **arguments)
        except requests.ConnectionError as error:
            problem = f"the JobManager does not answer at {self.rest_url}"
            raise StackError("flink", problem, "`make resume` restarts it") from error
        if not answer.ok:
            raise StackError("flink", f"{method} {path}: {answer.status_code} {answer.text[:2000]}")
        return answer.json() if answer.content else {}

    def get(self, path: str, **parameters: str) -> Any:
        """GET a REST resource as JSON."""
        return self._request("GET", path, params=parameters)

    # --- jobs --------------------------------------------------------------------------------

    def run(
        self,
        main: Path | str,
        args: Sequence[str] = (),
        *,
        parallelism: int | None = None,
        savepoint: str | None = None,
        claim: bool = False,
        settings: Mapping[str, str] | None = None,
        timeout: float = 180,
    ) -> str:
        """Submit a Python job with `flink run -d -py`; returns its id.

        `savepoint` may be a savepoint or a retained checkpoint; with `claim` Flink owns it and
        deletes it when it is no longer needed. `settings` are `-D` options for this job.
        """
        command = [str(flink_home.FLINK_HOME / "bin" / "flink"), "run", "-d"]
        if parallelism is not None:
            command += ["-p", str(parallelism)]
        if savepoint is not None:
            command += ["-s", savepoint, "-claim", "CLAIM" if claim else "NO_CLAIM"]
        for key, value in (settings or {}).items():
            command.append(f"-D{key}={value}")
        command += ["-py", str(main), *args]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=self.env(),
                cwd=PROJECT,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StackError("flink", f"`flink run` took over {timeout:.0f} s") from error
        found = _SUBMITTED.search(done.stdout)
        if done.returncode or not found:
            lines = (done.stdout + done.stderr).splitlines()
            # Behind what the job said comes Java's stack, which says nothing of it.
            log = "\n".join([line for line in lines if not line.startswith("\tat ")][-40:])
            raise StackError("flink", f"the job {main} was not submitted", "see the log", log)
        return found.group(1)

    def jobs(self) -> dict[str, str]:
        """Job id to status, of all jobs that the JobManager knows."""
        return {job["id"]: job["status"] for job in self.get("/jobs")["jobs"]}

    def running_job(self) -> str | None:
        """The id of the job that is not at its end, or None."""
        return live_job(self.get)

    def job(self, job_id: str) -> dict[str, Any]:
        """The job's description: state, vertices, plan."""
        answer: dict[str, Any] = self.get(f"/jobs/{job_id}")
        return answer

    def wait_running(self, job_id: str, timeout: float = 90) -> None:
        """Wait until the job and all its tasks run."""

        def running() -> bool:
            job = self.job(job_id)
            if job["state"] in DONE:
                raise StackError("flink", f"the job is {job['state']}", "", self._cause(job_id))
            states = {vertex["status"] for vertex in job["vertices"]}
            return job["state"] == "RUNNING" and states == {"RUNNING"}

        try:
            wait_until(running, timeout, every=0.2, what="running")
        except TimeoutError as error:
            cause = self._cause(job_id) or str(self.get("/overview"))
            problem = f"the job did not run within {timeout:.0f} s"
            raise StackError("flink", problem, "", cause) from error

    def _cause(self, job_id: str) -> str:
        found = self.exceptions(job_id)
        return "\n".join(found[0].splitlines()[:30]) if found else ""

    def exceptions(self, job_id: str) -> list[str]:
        """Stack traces of the job's failures, newest first."""
        history = self.get(f"/jobs/{job_id}/exceptions").get("exceptionHistory", {})
        return [str(entry["stacktrace"]) for entry in history.get("entries", [])]

    def restarts(self, job_id: str) -> int:
        """How often the job was restarted since it was submitted."""
        answer = self.get(f"/jobs/{job_id}/metrics", get="numRestarts")
        return int(float(answer[0]["value"])) if answer else 0

    def cancel(self, job_id: str, timeout: float = 60) -> None:
        """Cancel the job and wait for its end; the retained checkpoints stay."""
        self._request("PATCH", f"/jobs/{job_id}", params={"mode": "cancel"})
        self._wait_done(job_id, timeout)

    def _wait_done(self, job_id: str, timeout: float) -> None:
        wait_until(
            lambda: self.job(job_id)["state"] in DONE, timeout, what=f"the end of job {job_id}"
        )

    def stop_with_savepoint(self, job_id: str, timeout: float = 180) -> str:
        """Take a savepoint and stop; returns its folder."""
        body = {"targetDirectory": self.savepoint_dir.as_uri(), "drain": False}
        return self._savepoint(job_id, "stop", body, timeout, done=True)

    def savepoint(self, job_id: str, timeout: float = 180) -> str:
        """Take a savepoint while the job goes on; returns its folder."""
        body = {"target-directory": self.savepoint_dir.as_uri(), "cancel-job": False}
        return self._savepoint(job_id, "savepoints", body, timeout, done=False)

    def _savepoint(
        self, job_id: str, action: str, body: dict[str, object], timeout: float, *, done: bool
    ) -> str:
        asked = self._request("POST", f"/jobs/{job_id}/{action}", json=body)["request-id"]
        deadline = time.monotonic() + timeout
        while True:
            answer = self.get(f"/jobs/{job_id}/savepoints/{asked}")
            if answer["status"]["id"] == "COMPLETED":
                break
            if time.monotonic() > deadline:
                raise StackError("flink", f"no savepoint within {timeout:.0f} s")
            time.sleep(0.1)
        result = answer["operation"]
        if "failure-cause" in result:
            cause = str(result["failure-cause"].get("stack-trace", ""))[:2000]
            raise StackError("flink", "the savepoint failed", "the job goes on", cause)
        if done:
            self._wait_done(job_id, 60)
        return unquote(urlparse(result["location"]).path)

    def trigger_checkpoint(self, job_id: str, timeout: float = 60) -> None:
        """Take a checkpoint now and wait for it."""
        before = self.checkpoints(job_id).completed
        self._request("POST", f"/jobs/{job_id}/checkpoints", json={"checkpointType": "FULL"})
        wait_until(
            lambda: self.checkpoints(job_id).completed > before, timeout, what="a checkpoint"
        )

    def checkpoints(self, job_id: str) -> Checkpoints:
        """Counts, the newest completed checkpoint and the one restored from."""
        answer = self.get(f"/jobs/{job_id}/checkpoints")
        counts, latest = answer["counts"], answer["latest"]
        completed = latest.get("completed") or {}
        restored = latest.get("restored") or {}
        return Checkpoints(
            completed=counts["completed"],
            failed=counts["failed"],
            in_progress=counts["in_progress"],
            restored=counts["restored"],
            latest_path=completed.get("external_path"),
            latest_duration_ms=completed.get("end_to_end_duration"),
            latest_bytes=completed.get("state_size"),
            restored_path=restored.get("external_path"),
        )

    def _snapshots(self, *, savepoints: bool) -> list[Path]:
        found = list(self.checkpoint_dir.glob("*/chk-*/_metadata"))
        if savepoints:
            found += self.savepoint_dir.glob("savepoint-*/_metadata")
        return [file.parent for file in sorted(found, key=lambda file: file.stat().st_mtime_ns)]

    def latest_checkpoint_path(self) -> str | None:
        """The newest completed checkpoint of any job, read from the disk."""
        found = self._snapshots(savepoints=False)
        return str(found[-1]) if found else None

    def latest_restore_path(self) -> str | None:
        """The newest savepoint or completed checkpoint, whichever is newer."""
        found = self._snapshots(savepoints=True)
        return str(found[-1]) if found else None

    # --- metrics -----------------------------------------------------------------------------

    def metrics(self, job_id: str, names: Sequence[str]) -> dict[str, list[float]]:
        """Values over all vertices and subtasks of the metrics that end with `.<name>`."""
        return job_metrics(self.get, job_id, names)

    def metric(self, job_id: str, name: str) -> list[float]:
        """Values of one metric, as :meth:`metrics` has them."""
        return self.metrics(job_id, [name])[name]
