# The images of a mesh:  docker build --target sidecar -t hedgerow-sidecar .
#                        docker build --target controller -t hedgerow-controller .
# The controller's holds the injector and the command `hedgerow`, too. Neither holds a compiler, pip, or root's processes.
# Both state what is in them: /usr/share/hedgerow/sbom.cdx.json (CycloneDX).
# --build-arg REVISION=$(git rev-parse HEAD) labels them with the commit.
#
# Bases are pinned by the digest of their multi-platform index. To take a newer one, ask a registry for today's and put
# it here (Renovate and Dependabot do the same by themselves):
#     docker buildx imagetools inspect python:3.13-slim-trixie --format '{{.Manifest.Digest}}'
# Other bases, with the same things in the same places: --build-arg PYTHON_IMAGE=… --build-arg NODE_IMAGE=…
#
# Behind a mirror, say so with secrets, which stay out of the images; each may be left out:
#     --secret id=pip,src=pip.conf --secret id=npm,src=.npmrc --secret id=apt,src=apt.conf
#     --secret id=certificates,src=ca.pem    (every authority that pip and npm are to believe)
# The stage that the images stand on mounts its secret over nothing, in a folder that is there: buildah takes away what
# it has mounted over, and leaves the folders that it has made.
ARG PYTHON_IMAGE=python:3.13-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b
ARG NODE_IMAGE=node:22-trixie-slim@sha256:b26b04c123d9ff8ab646ceb18b9d75a1173acf64b9a401094b906d27b29338d4

# The web page. npm believes the authorities that it brings when there is no such file.
FROM ${NODE_IMAGE} AS page
WORKDIR /source/ui
COPY ui/package.json ui/package-lock.json ./
RUN --mount=type=secret,id=npm,target=/run/npmrc \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    NPM_CONFIG_USERCONFIG=/run/npmrc npm ci --no-audit --no-fund --cafile /etc/ssl/certs/ca-certificates.crt
COPY ui ./
RUN npm run build

# The wheel of this checkout, made with the pinned build tools.
FROM ${PYTHON_IMAGE} AS wheel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore SOURCE_DATE_EPOCH=315532800
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
WORKDIR /source
COPY requirements/dev.txt requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    awk '/^[a-z]/ { wanted = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } wanted' \
        requirements/dev.txt > build.txt \
    && pip install --require-hashes --only-binary=:all: --requirement build.txt
COPY pyproject.toml README.md LICENSE ./
COPY certs certs
COPY graph graph
COPY sidecar sidecar
COPY controller controller
COPY hedgerow hedgerow
COPY --from=page /source/controller/web/static controller/web/static
RUN pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /wheels .

# What both images stand on: Python, the tools that capture traffic, a user who owns nothing but their state. Python's
# own modules come without their compiled form, which nobody could write later: each start would compile them in memory.
# No program runs as somebody else than who starts it.
FROM ${PYTHON_IMAGE} AS runtime
RUN --mount=type=secret,id=apt,target=/run/apt.conf \
    if [ -f /run/apt.conf ]; then export APT_CONFIG=/run/apt.conf; fi \
    && apt-get update \
    && apt-get install --yes --no-install-recommends iptables nftables \
    && pip uninstall --yes --quiet --root-user-action ignore pip \
    && rm -rf /usr/local/lib/python3.13/ensurepip \
    && python -m compileall -q -f --invalidation-mode unchecked-hash /usr/local/lib/python3.13 \
    && groupadd --gid 1337 hedgerow \
    && useradd --uid 1337 --gid 1337 --home-dir /var/lib/hedgerow --no-create-home --shell /usr/sbin/nologin hedgerow \
    && install --directory --owner 1337 --group 1337 --mode 0750 /var/lib/hedgerow \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
ENV PATH=/opt/hedgerow/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# One virtual environment an image; modules are compiled here, for nobody can write them later. No commands of libraries.
FROM ${PYTHON_IMAGE} AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
RUN python -m venv --without-pip /opt/hedgerow
COPY requirements/sidecar.txt requirements/controller.txt /requirements/
COPY --from=wheel /wheels /wheels

FROM packages AS sidecar-packages
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    pip --python /opt/hedgerow/bin/python install --require-hashes --only-binary=:all: --no-compile \
        --requirement /requirements/sidecar.txt \
    && find /opt/hedgerow/bin -type f -delete \
    && pip --python /opt/hedgerow/bin/python install --no-deps --no-index --no-compile /wheels/*.whl \
    && python -m compileall -q -f --invalidation-mode unchecked-hash /opt/hedgerow/lib

FROM packages AS controller-packages
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    pip --python /opt/hedgerow/bin/python install --require-hashes --only-binary=:all: --no-compile \
        --requirement /requirements/controller.txt \
    && find /opt/hedgerow/bin -type f -delete \
    && pip --python /opt/hedgerow/bin/python install --no-deps --no-index --no-compile /wheels/*.whl \
    && python -m compileall -q -f --invalidation-mode unchecked-hash /opt/hedgerow/lib

# The bills of materials, read from what the images will really hold.
FROM runtime AS sidecar-bill
COPY --from=sidecar-packages /opt/hedgerow /opt/hedgerow
COPY e2e/images/sbom.py /
RUN mkdir /usr/share/hedgerow && python /sbom.py --name hedgerow-sidecar --dpkg /var/lib/dpkg/status --interpreter \
        --python /opt/hedgerow/lib/python3.13/site-packages > /usr/share/hedgerow/sbom.cdx.json

FROM runtime AS controller-bill
COPY --from=controller-packages /opt/hedgerow /opt/hedgerow
COPY e2e/images/sbom.py /
RUN mkdir /usr/share/hedgerow && python /sbom.py --name hedgerow-controller --dpkg /var/lib/dpkg/status --interpreter \
        --python /opt/hedgerow/lib/python3.13/site-packages > /usr/share/hedgerow/sbom.cdx.json

FROM runtime AS sidecar
COPY --from=sidecar-packages /opt/hedgerow /opt/hedgerow
COPY --from=sidecar-bill /usr/share/hedgerow /usr/share/hedgerow
USER 1337:1337
ENTRYPOINT ["python", "-m", "sidecar"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title=hedgerow-sidecar org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=0.1.0 org.opencontainers.image.revision=$REVISION

FROM runtime AS controller
COPY --from=controller-packages /opt/hedgerow /opt/hedgerow
COPY --from=controller-bill /usr/share/hedgerow /usr/share/hedgerow
USER 1337:1337
ENTRYPOINT ["python", "-m", "controller"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title=hedgerow-controller org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=0.1.0 org.opencontainers.image.revision=$REVISION
