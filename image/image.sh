#!/usr/bin/env bash
# Builds the container images: image.sh IMAGE PLATFORM[,PLATFORM...]
#
# One platform: IMAGE:VERSION and IMAGE:latest, IMAGE-mnat-ingress, IMAGE-mnat-egress,
# IMAGE-mnat-server and IMAGE-driad-ingest with the same tags, and IMAGE:debug. Several: each with
# the architecture behind the tag, IMAGE:VERSION-arm64, and the platform of this machine also without. Nothing runs in the build, so no emulator is needed.
# ENGINE is docker (the default) or podman.
set -euo pipefail
cd "$(dirname "$0")/.."

engine=${ENGINE:-docker}
image=$1
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
IFS=', ' read -r -a platforms <<< "${*:2}"
own=linux/$(dpkg --print-architecture 2>/dev/null || echo amd64)
[ "${#platforms[@]}" -gt 1 ] || own=${platforms[0]}

# build FOLDER PLATFORM OPTION...
build() {
  local options=(--quiet --platform "$2" --build-arg "VERSION=$version" "${@:3}")
  # The format of OCI has no health check.
  [ "$engine" != podman ] || options+=(--format docker)
  "$engine" build "${options[@]}" "$1"
}
# tagged NAME: a --tag for each of the tags
tagged() { local tag; for tag in "${tags[@]}"; do echo "--tag $1:$tag"; done; }

for platform in "${platforms[@]}"; do
  case $platform in
    linux/amd64) target=x86_64-unknown-linux-gnu ;;
    linux/arm64) target=aarch64-unknown-linux-gnu ;;
    *) echo "$platform: the platforms are linux/amd64 and linux/arm64" >&2; exit 2 ;;
  esac
  arch=${platform#linux/}
  folder=target/image-$arch
  image/build.sh "$target"
  rm -rf "$folder"
  mkdir -p "$folder"
  cp image/Dockerfile "$folder/"
  python3 image/archive.py "$folder/mcastor.tar" "target/$target/dist/mcastor"

  tags=("$version-$arch")
  [ "$platform" != "$own" ] || tags=("$version" latest)
  [ "${#platforms[@]}" -eq 1 ] || [ "$platform" != "$own" ] || tags+=("$version-$arch")
  # shellcheck disable=SC2046
  build "$folder" "$platform" --target mcastor $(tagged "$image")
  for part in mnat-ingress mnat-egress mnat-server driad-ingest; do
    # shellcheck disable=SC2046
    build "$folder" "$platform" --target "$part" $(tagged "$image-$part")
  done
  # The busybox of this machine runs only on its own architecture.
  if [ "$platform" = "linux/$(dpkg --print-architecture 2>/dev/null)" ]; then
    python3 image/archive.py --shell "$folder/debug.tar" /bin/busybox
    cp image/debug.Dockerfile "$folder/"
    build "$folder" "$platform" --file "$folder/debug.Dockerfile" --build-arg "BASE=$image:${tags[0]}" \
      --tag "$image:debug" --tag "$image:$version-debug"
  else
    echo "$platform: no $image:debug, which is built on that architecture only"
  fi
done

if [ "${#platforms[@]}" -gt 1 ]; then
  echo "One tag for all platforms, in the registry of $image:"
  for platform in "${platforms[@]}"; do echo "  $engine push $image:$version-${platform#linux/}"; done
  echo "  $engine manifest create $image:$version ${platforms[*]/#linux\//$image:$version-}"
  case $engine in
    podman) echo "  podman manifest push --all $image:$version docker://$image:$version" ;;
    *) echo "  $engine manifest push $image:$version" ;;
  esac
fi
