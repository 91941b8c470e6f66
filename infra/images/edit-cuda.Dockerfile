# The edit worker on NVIDIA devices. torch's wheels bring CUDA; the driver comes from the host.
# Build from the repository: docker build -f infra/images/edit-cuda.Dockerfile -t corrigenda-edit-cuda .
FROM python:3.11-slim

# Where packages come from is the builder's own choice: --build-arg PIP_INDEX_URL=… and PIP_EXTRA_INDEX_URL=…
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# DeepSpeed's kernels are for its optimizers, which editing does not use: nothing is compiled, now or later.
ENV PYTHONUNBUFFERED=1 \
    DS_BUILD_OPS=0 \
    DS_ACCELERATOR=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pipeline pipeline
COPY editors editors
COPY workers workers
COPY migrations migrations
COPY infra infra
RUN pip install --no-cache-dir --only-binary=:all: --no-binary=deepspeed -c constraints.txt '.[edit]'

RUN useradd --uid 10001 --no-create-home corrigenda \
 && install -d -o corrigenda -g corrigenda /var/lib/corrigenda
USER corrigenda
WORKDIR /var/lib/corrigenda
ENV HOME=/var/lib/corrigenda
