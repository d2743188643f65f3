# Image for a Dask scheduler and its workers, and for the command line, with the code of this version:
#   docker build -t histoblend .
#   docker run histoblend dask scheduler
#   docker run histoblend dask worker tcp://host:8786 --nthreads 1 --nworkers auto
#   docker run --user "$(id -u)" --volume "$PWD:/work" --workdir /work histoblend histoblend baseline
# Workers need the Python version of the machine that starts runs.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

WORKDIR /histoblend
COPY requirements-dask.txt ./
RUN pip install --no-cache-dir --only-binary :all: -r requirements-dask.txt
COPY pyproject.toml requirements-predict.in requirements.in README.md LICENSE ./
COPY src ./src
COPY data ./data
COPY features ./features
COPY models ./models
COPY reports ./reports
COPY pipelines ./pipelines
COPY configs ./configs
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .

# An ordinary user, who cannot change the code. A number, so that Kubernetes can check that it is not root.
RUN useradd --create-home --uid 1000 histoblend
ENV PYTHONDONTWRITEBYTECODE=1 NUMBA_CACHE_DIR=/home/histoblend/kernels
USER 1000
WORKDIR /home/histoblend
# Compile the kernels once here, so that workers do not have to. Any user may use them, also one given by --user.
RUN umask 0 && python -c "from histoblend.features.handcrafted.families import compile_kernels; compile_kernels()"

CMD ["dask", "worker", "--help"]
