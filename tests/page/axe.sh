#!/bin/sh
# Downloads axe-core from npm to target/axe-core-VERSION, and prints the path of its script.
set -eu
version=4.14.1
sum=29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c

cd "$(dirname "$0")/../.."
folder=$PWD/target/axe-core-$version
script=$folder/axe.min.js
if [ ! -e "$script" ]; then
  mkdir -p "$folder"
  (cd "$folder" && npm pack --silent "axe-core@$version" >&2 && tar xzf "axe-core-$version.tgz" --strip-components=1)
fi
echo "$sum  $script" | sha256sum --check --quiet >&2
echo "$script"
