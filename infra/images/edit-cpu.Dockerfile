# The edit worker on processors: the same as edit-cuda, with torch's build for them.
# Build from the repository: docker build -f infra/images/edit-cpu.Dockerfile -t corrigenda-edit-cpu .
FROM python:3.11-slim

# torch's own index of builds without CUDA, if you have one: --build-arg PIP_EXTRA_INDEX_URL=…
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# DeepSpeed's kernels are for its optimizers, which editing does not use: nothing is compiled, now or later.
ENV PYTHONUNBUFFERED=1 \
    DS_BUILD_OPS=0 \
    DS_ACCELERATOR=cpu

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
