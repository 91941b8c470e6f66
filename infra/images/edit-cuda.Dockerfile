# The edit worker, and what serves a model, on NVIDIA devices. torch's wheels bring CUDA; the driver comes from the host.
# Build from the repository: docker build -f infra/images/edit-cuda.Dockerfile -t corrigenda-edit-cuda .
FROM python:3.11-slim AS build

# DeepSpeed's kernels are for its optimizers, which editing does not use: nothing is compiled, now or later.
# Where packages come from is the builder's own choice: --build-arg PIP_INDEX_URL=… and PIP_EXTRA_INDEX_URL=…
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV DS_BUILD_OPS=0

RUN python -m venv /opt/corrigenda
ENV PATH=/opt/corrigenda/bin:$PATH
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pipeline pipeline
COPY editors editors
COPY workers workers
COPY migrations migrations
COPY infra infra
RUN pip install --no-cache-dir --only-binary=:all: --no-binary=deepspeed -c constraints.txt '.[edit,s3]'

# What was installed, and nothing that it was installed with.
FROM python:3.11-slim
COPY --from=build /opt/corrigenda /opt/corrigenda
ENV PATH=/opt/corrigenda/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CORRIGENDA_HEALTH_HOST=0.0.0.0 \
    CORRIGENDA_HEALTH_PORT=9464 \
    DS_BUILD_OPS=0 \
    DS_ACCELERATOR=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

RUN useradd --uid 10001 --no-create-home corrigenda \
 && install -d -o corrigenda -g corrigenda /var/lib/corrigenda
USER corrigenda
WORKDIR /var/lib/corrigenda
ENV HOME=/var/lib/corrigenda
HEALTHCHECK --interval=30s --timeout=10s --start-period=3m --retries=3 CMD ["python", "-m", "pipeline.entrypoints.probe"]
