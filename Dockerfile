# The executor. EXTRAS=executor,torch adds the TORCH backend (several GB).
#   docker build -t keyside-executor .
#   docker run --rm keyside-executor --url redis://host:6379
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG EXTRAS=executor
# The user of the valkey image: with compose both processes share a socket that is closed to everybody else.
ARG UID=999
RUN useradd --uid ${UID} --user-group --create-home --shell /usr/sbin/nologin keyside \
 && install -d -o ${UID} -g ${UID} /var/cache/keyside
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir -c /constraints.txt "$(echo /wheels/keyside-*.whl)[${EXTRAS}]"
USER ${UID}
ENV KEYSIDE_CACHE_DIR=/var/cache/keyside \
    KEYSIDE_LOG_FORMAT=json \
    PYTHONUNBUFFERED=1
# SIGTERM drains: jobs that it has claimed are finished or handed back first.
STOPSIGNAL SIGTERM
ENTRYPOINT ["keyside", "executor"]
