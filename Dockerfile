# Image for a Dask scheduler and its workers, with the code of this version:
#   docker build -t histoblend .
#   docker run histoblend dask scheduler
#   docker run histoblend dask worker tcp://host:8786 --nthreads 1 --nworkers auto
FROM python:3.12-slim

WORKDIR /histoblend
COPY requirements-dask.txt ./
RUN pip install --no-cache-dir --only-binary :all: -r requirements-dask.txt
COPY src ./src
COPY data ./data
COPY features ./features
COPY models ./models
COPY reports ./reports
COPY pipelines ./pipelines
COPY configs ./configs

ENV PYTHONPATH=/histoblend/src PYTHONDONTWRITEBYTECODE=1
# Compile the kernels once here, so that workers do not have to.
RUN python -c "from histoblend.features.handcrafted.families import compile_kernels; compile_kernels()"

CMD ["dask", "worker", "--help"]
