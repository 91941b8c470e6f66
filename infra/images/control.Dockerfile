# The control plane: intake, control worker, API, migrations, command line, MLflow server. Brings no torch.
# Build from the repository: docker build -f infra/images/control.Dockerfile -t corrigenda-control .
FROM python:3.11-slim AS build

# Where packages come from is the builder's own choice: --build-arg PIP_INDEX_URL=… and PIP_EXTRA_INDEX_URL=…
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

RUN python -m venv /opt/corrigenda
ENV PATH=/opt/corrigenda/bin:$PATH
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pipeline pipeline
COPY editors editors
COPY workers workers
COPY migrations migrations
COPY infra infra
RUN pip install --no-cache-dir --only-binary=:all: -c constraints.txt '.[s3]'

# What was installed, and nothing that it was installed with.
FROM python:3.11-slim
COPY --from=build /opt/corrigenda /opt/corrigenda
ENV PATH=/opt/corrigenda/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CORRIGENDA_HEALTH_HOST=0.0.0.0 \
    CORRIGENDA_HEALTH_PORT=9464

RUN useradd --uid 10001 --no-create-home corrigenda \
 && install -d -o corrigenda -g corrigenda /var/lib/corrigenda /var/lib/mlflow
USER corrigenda
WORKDIR /var/lib/corrigenda
ENV HOME=/var/lib/corrigenda
HEALTHCHECK --interval=30s --timeout=10s --start-period=3m --retries=3 CMD ["python", "-m", "pipeline.entrypoints.probe"]
