"""Every benchmark of the operator runs and prints figures. What they are is for a quiet machine to say."""

import asyncio
import contextlib
import json

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cluster.programs import build_all
from cluster.running import Shape
from figures import BENCHMARKS, assert_figures

FIGURES = {
    "operator_scale": {
        "last pod, ours / bare at 3",
        "last pod, ours / bare with a Service each at 3",
        "operator CPU ms a job at 3",
        "floor: CPU ms a job at 3",
        "operator CPU at 3, of the floor",
        "operator CPU at 3, of that of Kubernetes' controllers",
        "operator requests a job at 3",
        "looks a job at 3",
        "operator peak MiB at 3",
        "cores with 5 finished jobs",
        "MiB with 5 finished jobs",
    },
    "operator_tenants": {"quiet p99, beside / alone, bare Jobs", "quiet p99, beside / alone, FineTuneJobs"},
    "operator_experiments": {"requests of a trial / of a job", "CPU of a trial / of a job"},
}


@pytest.fixture(scope="module", autouse=True)
def programs():
    build_all(Shape(simulated_nodes=1).programs())


@pytest.mark.parametrize("name", FIGURES)
def test_a_benchmark_prints_its_figures(name):
    assert_figures(name, FIGURES[name])


def test_a_watch_that_the_api_server_ends_is_begun_anew_and_tells_each_pod_once(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import scale_cluster

    begun = []
    gone = b'{"type":"ERROR","object":{"code":410}}\n'
    answers = iter(
        [
            web.Response(body=added(1) + added(2)),
            web.Response(body=added(3) + gone),
            web.Response(body=added(1) + added(3)),
            web.Response(status=410),
            web.Response(body=added(4)),
        ]
    )

    async def watch(request):
        begun.append(request.query["resourceVersion"])
        return next(answers)

    async def told():
        application = web.Application()
        application.router.add_get("/api/v1/pods", watch)
        async with TestServer(application) as server, aiohttp.ClientSession() as session:
            client = scale_cluster.Client(str(server.make_url("")).rstrip("/"), session)
            async with contextlib.aclosing(client.watch_pods()) as pods:
                return [await anext(pods) for _ in range(4)]

    assert asyncio.run(told()) == ["job-1", "job-2", "job-3", "job-4"]
    assert begun == ["", "2", "", "3", ""]


def added(number):
    """An event of a watch."""
    labels = {"finetune.dev/job": f"job-{number}"}
    metadata = {"uid": f"uid-{number}", "resourceVersion": str(number), "labels": labels}
    return json.dumps({"type": "ADDED", "object": {"metadata": metadata}}, separators=(",", ":")).encode() + b"\n"
