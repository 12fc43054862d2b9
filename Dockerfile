# LM-Harmony without a GPU.
#   docker build -t lm-harmony .
#   docker run --rm -v "$PWD:/work" lm-harmony demo --fast
FROM python:3.11-slim
# An index with CPU builds of torch makes the image smaller. Without it, the build with CUDA is installed, which also runs on a CPU.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /opt/lm-harmony
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".[figures,page,sentencepiece]"
WORKDIR /work
ENTRYPOINT ["lm-harmony"]
CMD ["--help"]
