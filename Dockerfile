# One image for both sides: the torch layer is shared, and a change of code rebuilds only the last layer.
FROM python:3.12-slim AS libraries

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

WORKDIR /build
# requirements.lock pins every version (as constraints: the tools for development stay out of the image).
COPY requirements.lock ./
RUN pip install --constraint requirements.lock torch torchvision
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; x = p['optional-dependencies']; print(*p['dependencies'], *x['server'], *x['trainer'], sep='\n')" > wanted.txt \
    && pip install --constraint requirements.lock --requirement wanted.txt

FROM libraries AS app

COPY README.md LICENSE ./
COPY shared shared
COPY cache cache
COPY teacher_server teacher_server
COPY student_trainer student_trainer
RUN pip install --no-deps . \
    && rm -rf /build \
    && useradd --uid 10001 --create-home teachonce \
    && install --directory --owner teachonce --group teachonce /data /runs

# Libraries keep small files in the home folder; the root is read-only, and /tmp is not.
ENV HOME=/tmp
# Never /app or a folder that holds `cache`: a volume mounted over the package would hide it.
WORKDIR /home/teachonce
USER 10001
EXPOSE 8000
CMD ["teacher-server", "--help"]
