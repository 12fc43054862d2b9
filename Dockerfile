# LM-Harmony without a GPU.
#   docker build -t lm-harmony .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" lm-harmony demo --fast
# Results and caches (.cache, with the hub's downloads) are written to the mounted folder, as the user that --user names.
# Leave --user out where Docker or Podman runs without root.
FROM python:3.11-slim
# An index with CPU builds of torch makes the image smaller. Without it, the build with CUDA is installed, which also runs on a CPU.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /opt/lm-harmony
# The dependencies are a layer of their own, which a change of the sources does not install again.
COPY pyproject.toml constraints.txt ./
RUN mkdir src && touch README.md LICENSE && pip install --no-cache-dir -c constraints.txt ".[figures,page,sentencepiece]"
COPY README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --no-deps . && rm -rf build
# A user that the image does not know has no home folder. /tmp can be written by all.
ENV HOME=/tmp XDG_CACHE_HOME=/work/.cache
WORKDIR /work
ENTRYPOINT ["lm-harmony"]
CMD ["--help"]
