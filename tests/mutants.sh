#!/usr/bin/env bash
# Mutation tests of a pure module: cargo-mutants changes one expression at a time and runs the unit
# tests of the module, which must fail.
#
#   tests/mutants.sh MODULE [ARGUMENT...]
#
# MODULE is model, wire, membership, table or forward. Arguments are passed to cargo-mutants, such as
# --file 'src/wire/igmp.rs', --shard 1/8 or --list. Results are in target/mutants/MODULE/mutants.out.
#
# The module and those that it uses are copied into a crate of their own, which builds in seconds. The
# whole router would take minutes for each mutant.
set -euo pipefail
cd "$(dirname "$0")/.."

version=27.1.0
case ${1:-} in
model) modules="model" ;;
wire) modules="model wire" ;;
membership) modules="model wire membership" ;;
table) modules="model table" ;;
forward) modules="model wire table forward" ;;
*) echo "usage: tests/mutants.sh model|wire|membership|table|forward [ARGUMENT...]" >&2; exit 2 ;;
esac
module=$1
shift
folder=target/mutants/$module

if [ "$(cargo mutants --version 2>/dev/null)" != "cargo-mutants $version" ]; then
  echo "installing: cargo-mutants $version"
  cargo install --quiet --locked --force --version "$version" cargo-mutants
fi

rm -rf "$folder/src" "$folder/proptest-regressions"
mkdir -p "$folder/src" "$folder/.cargo"
for name in $modules; do
  cp -r "src/$name" "$folder/src/"
  echo "pub mod $name;" >>"$folder/src/lib.rs"
done
cp -r proptest-regressions "$folder/"
# The vectors of the translation.
mkdir -p "$folder/tests"
cp -r tests/vectors "$folder/tests/"
cp Cargo.lock "$folder/"
cp tests/mutants.toml "$folder/.cargo/"

# The dependencies that these modules use, with the versions of the router.
dependency() { grep -E "^$1 = " Cargo.toml | head -n 1; }
{
  printf '[package]\nname = "mcastor-%s"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n' "$module"
  printf '[dependencies]\n'
  for name in ahash etherparse ipnet lru serde strsim thiserror; do dependency "$name"; done
  printf '[dev-dependencies]\n'
  for name in proptest serde_json; do dependency "$name"; done
  # Builds take longer than tests.
  printf '[profile.test]\ndebug = false\n[profile.test.package."*"]\nopt-level = 1\n'
} >"$folder/Cargo.toml"

cd "$folder"
# Without --file, all files of the module are mutated.
case " $* " in
*" --file "* | *" -f "*) ;;
*) set -- --file "src/$module/**" "$@" ;;
esac
# The copy is changed in place, so that the dependencies are built once.
cargo mutants --in-place "$@" -- --lib "$module::"
