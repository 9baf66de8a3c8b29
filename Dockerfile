# flowsep-serve, flowsep-run and flowsep-batch without PyTorch; docs/scaling.md says how to build and run it.
#
#   docker build -t flowsep .                    for processors
#   docker build -t flowsep:cuda --target cuda . for an NVIDIA GPU

ARG PYTHON=python:3.12-slim

FROM ${PYTHON} AS wheel
WORKDIR /source
COPY setup.cfg pyproject.toml README.md LICENSE constraints.txt ./
COPY flowsep_ref flowsep_ref
COPY evaluation evaluation
COPY export export
COPY runtime runtime
COPY serve serve
COPY training training
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${PYTHON} AS common
# Only /tmp is written to: everything else may be read-only. The cache is filled below.
ENV XDG_CACHE_HOME=/var/cache/flowsep \
    HOME=/tmp \
    PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin flowsep \
    && install --directory --owner=flowsep /var/cache/flowsep
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]

FROM common AS cuda
ARG EXTRAS=gpu,media,serve
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/,target=/wheel \
    pip install --no-cache-dir --constraint /wheel/source/constraints.txt "$(ls /wheel/wheels/*.whl)[${EXTRAS}]"
USER flowsep
CMD ["flowsep-serve", "--host", "0.0.0.0", "--api-key-file", "/run/secrets/flowsep-keys", "--backend", "cuda"]

FROM common AS cpu
ARG EXTRAS=cpu,media,serve
RUN --mount=type=bind,from=wheel,source=/,target=/wheel \
    pip install --no-cache-dir --constraint /wheel/source/constraints.txt "$(ls /wheel/wheels/*.whl)[${EXTRAS}]" \
    # What is never loaded here: OpenVINO for GPUs, NPUs and models of other kinds, a second copy of ONNX Runtime, its
    # tools, tests, and the weights of the reference. tests/project/test_images.py runs the model without it.
    && cd "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && rm -rf openvino/include openvino/libs/cache.json openvino/libs/libopenvino_intel_[gn]pu_plugin.so \
        openvino/libs/libopenvino_gguf_frontend.so.* openvino/libs/libopenvino_jax_frontend.so.* \
        openvino/libs/libopenvino_paddle_frontend.so.* openvino/libs/libopenvino_pytorch_frontend.so.* \
        openvino/libs/libopenvino_tensorflow_lite_frontend.so.* \
        onnxruntime/capi/libonnxruntime.so.* onnxruntime/quantization onnxruntime/tools onnxruntime/transformers \
        numpy/tests numpy/*/tests flowsep_ref/assets
USER flowsep
# What is compiled here is used on processors of the same kind; others compile at their start.
RUN flowsep-run --prepare
CMD ["flowsep-serve", "--host", "0.0.0.0", "--api-key-file", "/run/secrets/flowsep-keys"]
