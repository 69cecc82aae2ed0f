# The image with a shell, busybox of Debian, to look around: docker exec -it NAME sh
ARG BASE=mcastor
FROM $BASE
ADD debug.tar /
ENV PATH=/usr/bin:/bin
