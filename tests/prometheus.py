"""A real Prometheus (Debian's, unpacked). That one cannot ask an API server for pods: it is told of them by a file.

What is scraped is what the chart's PodMonitors select: pods by the name of a port.
"""

import contextlib
import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster.cache import cache_folder
from cluster.debian import unpacked
from cluster.ports import free_port
from operating import until

PORTS = {"operator": "metrics", "trainer": "progress"}
"""The name of the port that each is scraped at: what the chart's PodMonitors name."""


class Prometheus:
    """One that runs."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def tell(self, pods: list[dict[str, Any]]) -> None:
        """These are all pods there are."""
        for name, found in targets(pods).items():
            new = self.folder / f".{name}.json"
            new.write_text(json.dumps(found))
            new.rename(self.folder / f"{name}.json")

    def query(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The value of each series: its labels, sorted → value."""
        where = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(where, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return {tuple(sorted(one["metric"].items())): float(one["value"][1]) for one in found}

    def is_ready(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
            return True
        return False


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """Within: one that scrapes each second what it is told of."""
    folder.mkdir()
    program = unpacked("prometheus", cache_folder() / "debian") / "usr/bin/prometheus"
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration()))
    where = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'series'}",
               f"--web.listen-address={where}"]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, *options], stdout=log, stderr=log, cwd=folder)
    try:
        running = Prometheus(f"http://{where}", folder)
        until(lambda: running.is_ready() or process.poll() is not None, 30, "Prometheus")
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        yield running
    finally:
        process.terminate()
        process.wait(20)


def configuration() -> dict[str, Any]:
    """The labels that a series brings win: the operator's tell of jobs, not of itself."""
    files = {name: [{"files": [f"{name}.json"], "refresh_interval": "1s"}] for name in PORTS}
    scraped = [{"job_name": name, "honor_labels": True, "file_sd_configs": files[name]} for name in PORTS]
    return {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": scraped}


def targets(pods: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What to scrape among these pods, by what it is: of a job's workers the first, which speaks for all."""
    return {name: [_target(pod, port) for pod in pods if _is_scraped(pod, port)] for name, port in PORTS.items()}


def _is_scraped(pod: dict[str, Any], port: str) -> bool:
    index = pod["metadata"]["labels"].get("batch.kubernetes.io/job-completion-index", "0")
    return index == "0" and pod["status"]["phase"] == "Running" and _port(pod, port) is not None


def _port(pod: dict[str, Any], name: str) -> int | None:
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", [])]
    return next((port["containerPort"] for port in ports if port.get("name") == name), None)


def _target(pod: dict[str, Any], port: str) -> dict[str, Any]:
    labels = {"namespace": pod["metadata"]["namespace"], "pod": pod["metadata"]["name"]}
    job = pod["metadata"]["labels"].get("finetune.dev/job")
    return {
        "targets": [f"{pod['status']['podIP']}:{_port(pod, port)}"],
        "labels": labels | ({"finetune_job": job} if job else {}),
    }
