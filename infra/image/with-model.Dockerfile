# The image with a checkpoint inside. The build context is the checkpoint's folder:
#
#   docker build -f infra/image/with-model.Dockerfile --build-arg IMAGE=registry/m2f-pipeline@sha256:... -t ... CHECKPOINT/
#
# check=skip=InvalidDefaultArgInFrom
# (IMAGE has no default: name the image that you have built, by its digest.)
ARG IMAGE
FROM ${IMAGE}
COPY --chown=0:0 . /models/model/
