# Slipway as an image of its own.
#
#   docker build -t slipway .                               onnxruntime on the CPU
#   docker build -t slipway:gpu --build-arg VARIANT=gpu .   onnxruntime-gpu, with CUDA from PyPI
#   docker run -p 8000:8000 -p 8001:8001 -p 8002:8002 -v "$PWD/model_repo:/models:ro" slipway

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ARG VARIANT=cpu
RUN python -m venv /opt/slipway
ENV PATH=/opt/slipway/bin:$PATH
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY serving serving
COPY training training
RUN pip install --no-cache-dir -c constraints.txt ".[${VARIANT},audio,text,tracing]"

FROM python:${PYTHON_VERSION}-slim
RUN useradd --system --uid 10001 --no-create-home slipway
COPY --from=build /opt/slipway /opt/slipway
COPY model_repo /models
ENV PATH=/opt/slipway/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["slipway", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["slipway"]
CMD ["serve", "--model-repository", "/models", "--host", "0.0.0.0"]
