# abmll serve in a container. docs/howto/serve-many.md says how to build and run it; compose.yaml has two of them.
FROM python:3.11-slim

# PyTorch first, as its default build brings the CUDA libraries. For a GPU: --build-arg TORCH_INDEX=.../cu130
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir "torch==${TORCH}" --index-url "${TORCH_INDEX}"

WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --constraint constraints.txt '.[serve,postgres]'

# Whoever owns the files of secrets on the host can read them in the container: build with that number.
ARG UID=1000
RUN useradd --uid "${UID}" --create-home abmll \
    && mkdir /data /cache /shared \
    && chown abmll /data /cache /shared
USER ${UID}
WORKDIR /data

# Two arenas: heads are fitted in threads of their own, each of which would keep memory of its own.
ENV MALLOC_ARENA_MAX=2 ABMLL_CACHE=/cache HF_HOME=/cache/huggingface
VOLUME ["/data", "/cache"]
EXPOSE 8000
# The first start downloads the model.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["abmll", "serve"]
CMD ["--store", "/data/store", "--host", "0.0.0.0", "--port", "8000", "--token-file", "/run/secrets/tokens"]
