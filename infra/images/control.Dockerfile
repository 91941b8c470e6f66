# The control plane: intake, control worker, migrations, command line, MLflow server. Brings no torch.
# Build from the repository: docker build -f infra/images/control.Dockerfile -t corrigenda-control .
FROM python:3.11-slim

# Where packages come from is the builder's own choice: --build-arg PIP_INDEX_URL=… and PIP_EXTRA_INDEX_URL=…
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PYTHONUNBUFFERED=1

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pipeline pipeline
COPY editors editors
COPY workers workers
COPY migrations migrations
COPY infra infra
RUN pip install --no-cache-dir --only-binary=:all: -c constraints.txt .

RUN useradd --uid 10001 --no-create-home corrigenda \
 && install -d -o corrigenda -g corrigenda /var/lib/corrigenda /var/lib/mlflow
USER corrigenda
WORKDIR /var/lib/corrigenda
ENV HOME=/var/lib/corrigenda
