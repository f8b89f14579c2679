"""The Dockerfile and what goes into its images, without building them; tests of the cluster build and run them."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from charts import ROOT, found, rendered
from finetune_api.load import parse_job
from finetune_api.runtime import RuntimeSpec
from finetune_operator.build.pod import USER, build_pod_template
from finetune_operator.resolved import Resolved

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SPEC = {"task": "causal-lm", "model": {"source": "hf://a/b"}, "data": {"source": "hf://a/c"}}
MOST_OPERATOR_BYTES = 200e6
COMPILED_BYTES = 30e6
"""What the modules that are imported are compiled to: 20 MB, and the project's own."""


def stages():
    """Name of each stage → (what it is made from, its instructions)."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    parts = re.split(r"^FROM (\S+) AS (\S+)$", joined, flags=re.MULTILINE)
    bases, titles, bodies = parts[1::3], parts[2::3], parts[3::3]
    return {
        title: (base, [line for line in body.splitlines() if line and not line.startswith("#")])
        for base, title, body in zip(bases, titles, bodies, strict=True)
    }


def installed_with(extra):
    """Names of all distributions that the project with this extra installs, found in this environment."""
    wanted = [f"{PROJECT['name']}[{extra}]"]
    seen, names = set(), set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        for asked in ("", *requirement.extras):
            if (name, asked) in seen:
                continue
            seen.add((name, asked))
            inner = (Requirement(line) for line in distribution(name).requires or [])
            wanted += [str(one) for one in inner if one.marker is None or one.marker.evaluate({"extra": asked})]
        names.add(name)
    return names - {PROJECT["name"]}


def locked():
    """Name → whether it is pinned with a hash, of everything in requirements.lock."""
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    return {
        re.match(r"[\w.-]+", one)[0]: bool(re.match(r"[\w.-]+==\S+.*\\\n\s+--hash=sha256:", one)) for one in entries
    }


def test_one_argument_names_the_base_of_all():
    assert {base for base, _ in stages().values()} - stages().keys() == {"${BASE_IMAGE}"}


@pytest.mark.parametrize("target", ["operator", "trainer"])
def test_an_image_is_the_base_a_user_and_one_folder(target):
    base, instructions = stages()[target]
    shipped_from, shipped = stages()[base]
    assert shipped_from == "${BASE_IMAGE}"
    assert f"USER {USER}:{USER}" in shipped
    assert not [line for line in instructions if line.startswith(("RUN", "ADD", "USER", "ENV"))]
    assert [line for line in instructions if line.startswith("COPY")] == [
        f"COPY --from={target}-build /opt/venv /opt/venv"
    ]


def test_an_image_starts_what_pods_start():
    job = parse_job(
        {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "a"}, "spec": SPEC}
    )
    runtime = RuntimeSpec(image="trainer:1")
    (trainer,) = build_pod_template(Resolved(job, runtime), 1)["spec"]["containers"]
    (operator,) = found(rendered(), "Deployment")["spec"]["template"]["spec"]["containers"]
    for target, container in {"trainer": trainer, "operator": operator}.items():
        (command,) = (line.removeprefix("CMD ") for line in stages()[target][1] if line.startswith("CMD"))
        assert json.loads(command) == container["command"]


def test_everything_that_is_installed_has_a_version_and_a_hash():
    known = locked()
    for extra in ("operator", "search", "trainer", "wandb"):
        assert {name for name in installed_with(extra) if not known.get(name)} == set(), extra
    installing = [line for _, lines in stages().values() for line in lines if "uv pip install" in line]
    assert all("--require-hashes --only-binary :all:" in line or "--no-deps ." in line for line in installing)


def test_the_operators_image_is_small_and_without_torch():
    """A test on a real node measures the image itself (``test_cluster_chart``)."""
    removed = set(re.search(r"uv pip uninstall ([a-z ]+?) *&&", " ".join(stages()["operator-build"][1]))[1].split())
    names = (installed_with("operator") | installed_with("search")) - removed
    assert names & {"torch", "transformers", "accelerate", "scipy"} == set()
    files = [file for name in names for file in distribution(name).files or []]
    kept = [file for file in files if file.suffix != ".pyc" and "tests" not in file.parts and file.locate().exists()]
    assert sum(file.locate().stat().st_size for file in kept) + COMPILED_BYTES < MOST_OPERATOR_BYTES


def test_a_search_needs_nothing_that_was_removed():
    removed = ("sqlalchemy", "alembic", "greenlet", "mako")
    script = f"""
import sys
sys.modules.update(dict.fromkeys({removed!r}))
from finetune_api.experiment import LogUniform, Parameter, Search
from finetune_operator.experiments.search import Proposal, propose
rate = Parameter(field="strategy.learningRate.value", log_uniform=LogUniform(low=1e-5, high=1e-1))
known = []
for number in range(12):
    known.append(Proposal(propose(Search(parameters=(rate,), startup_proposals=2), "max", known), value=float(number)))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_only_what_the_package_is_built_from_is_sent_to_the_builder():
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    needed = {"pyproject.toml", "requirements.lock", "README.md", "LICENSE", *build}
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == needed
    assert all((ROOT / path).exists() for path in needed)
