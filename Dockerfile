# One image for server and trainer, in layers from the slowest to the fastest: torch, the other libraries, our own packages.
# A change of code makes a small wheel and the last layer again. PYTHON_IMAGE=python:3.12-slim@sha256:... pins the base to the bit.
ARG PYTHON_IMAGE=python:3.12-slim
FROM ${PYTHON_IMAGE} AS python

# pip reads both by itself: an index of your own, or one of CPU-only torch, which is gigabytes smaller. No passwords in them:
# build arguments stay readable in the image's history.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

# What the layers depend on, and no more. A layer is built again only where the text copied into it has changed: the gigabytes of
# torch stay when any other line of the lock or of pyproject.toml does.
FROM python AS pins
WORKDIR /pins
COPY requirements.lock pyproject.toml ./
RUN grep --ignore-case --extended-regexp \
        '^(torch|torchvision|triton|nvidia-.*|cuda-.*|numpy|pillow|sympy|mpmath|networkx|jinja2|markupsafe|filelock|fsspec|typing_extensions|setuptools)==' \
        requirements.lock > torch.txt \
    && python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; x = p['optional-dependencies']; print(*p['dependencies'], *x['server'], *x['trainer'], sep='\n')" > wanted.txt

# requirements.lock pins every version, as constraints: the tools for development stay out of the image.
FROM python AS libraries
WORKDIR /pins
COPY --from=pins /pins/torch.txt ./
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint torch.txt torch torchvision
COPY --from=pins /pins/wanted.txt ./
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint requirements.lock --requirement wanted.txt

FROM libraries AS package
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY cache cache
COPY teacher_server teacher_server
COPY student_trainer student_trainer
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .

FROM libraries AS app
LABEL org.opencontainers.image.title="teachonce" \
      org.opencontainers.image.description="Run the teacher once, keep everything it said, train any number of students from it." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --create-home teachonce \
    && install --directory --owner teachonce --group teachonce /data /runs
RUN --mount=type=bind,from=package,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps --no-index /wheel/*.whl

# Libraries keep small files in the home folder; the root is read-only, and /tmp is not.
ENV HOME=/tmp
# Never /app or a folder that holds `cache`: a volume mounted over the package would hide it.
WORKDIR /home/teachonce
USER 10001
EXPOSE 8000
CMD ["teacher-server", "--help"]
