# Two images of one project: `--target operator` (no torch) and `--target trainer`.
# The base needs nothing but python3 (3.11 or newer) with venv.
ARG BASE_IMAGE=python:3.11-slim

# --- What builds; nothing of it is shipped ---
FROM ${BASE_IMAGE} AS build
ARG UV_VERSION=0.13.9
# The interpreter of /opt/venv is the base's own, so that the folder works in any image of that base.
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check uv==${UV_VERSION} \
    && /opt/build/bin/uv venv --quiet --python "$(command -v python3)" /opt/venv
ENV PATH=/opt/build/bin:${PATH} \
    VIRTUAL_ENV=/opt/venv \
    UV_CONSTRAINT=/src/requirements.lock \
    UV_BUILD_CONSTRAINT=/src/requirements.lock \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_COMPILE_BYTECODE=1
WORKDIR /src
COPY pyproject.toml requirements.lock ./

# What an extra asks for, at the versions of the lock and with its hashes; a change of our code leaves this layer alone.
FROM build AS operator-build
# Only what it imports is compiled below: of the Kubernetes client's thousands of modules that is a few dozen.
ENV UV_COMPILE_BYTECODE=0
# Optuna's databases go again: a search's study is made anew from the cluster each time, in memory.
RUN uv pip install --require-hashes --only-binary :all: -r pyproject.toml --extra operator --extra search \
    && uv pip uninstall sqlalchemy alembic greenlet mako \
    && find /opt/venv -type d -name tests -prune -exec rm -r {} +
COPY . .
RUN uv pip install --no-deps . \
    && /opt/venv/bin/python -c "import finetune_operator.serve, finetune_cli.dashboard.serve, optuna; optuna.create_study().ask({})"

FROM build AS trainer-build
RUN uv pip install --require-hashes --only-binary :all: -r pyproject.toml --extra trainer --extra wandb
COPY . .
RUN uv pip install --no-deps .

# --- What is shipped: the base, a user, a virtual environment ---
FROM ${BASE_IMAGE} AS shipped
ARG VERSION=0.1.0
ARG REVISION=unknown
# Some libraries ask for the user's name and fail if it has none.
RUN groupadd --key GID_MAX=65532 --gid 65532 nonroot \
    && useradd --key UID_MAX=65532 --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent nonroot
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.licenses=Apache-2.0
WORKDIR /
USER 65532:65532

FROM shipped AS trainer
LABEL org.opencontainers.image.title=finetune-trainer \
      org.opencontainers.image.description="Trains what a FineTuneJob says"
COPY --from=trainer-build /opt/venv /opt/venv
CMD ["python", "-m", "finetune_trainer.launch"]

FROM shipped AS operator
LABEL org.opencontainers.image.title=finetune-operator \
      org.opencontainers.image.description="Runs FineTuneJobs on Kubernetes"
COPY --from=operator-build /opt/venv /opt/venv
CMD ["python", "-m", "finetune_operator"]
