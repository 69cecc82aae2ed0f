# On a fresh Debian 12 machine with Rust, `make demo` and `make test` install what they need.

PREFIX  ?= /usr/local
# Programs that the tests use besides Rust: senders, receivers, peers and validators.
PACKAGES = gcc libc6-dev iproute2 iptables tcpdump iperf iputils-ping python3-scapy ethtool curl \
           smcroute util-linux frr igmpproxy docker.io docker-compose podman prometheus \
           python3-jsonschema python3-yaml

.PHONY: build dist demo test soak bench bench-membership micro check supply-chain third-party mutants compiler packages \
        image image-aarch64 test-image install install-smcroute clean

# Optimised, without LTO.
build:
	cargo build --release --locked

# What is installed: with LTO and without symbols, which takes longer.
dist: compiler
	cargo build --profile dist --locked

demo: compiler build
	target/release/mcastor demo

# Formatting, lints, documentation, dependencies and all tests. The last line is the number of tests.
test: packages check supply-chain
	tests/run.sh

check:
	cargo fmt --all -- --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

# Licences, duplicate crates, sources and security advisories of the dependencies (deny.toml), and
# whether THIRD-PARTY.md is current. Installs cargo-deny if it is missing, which takes minutes.
supply-chain: compiler
	tests/third-party.py --check
	tests/supply-chain.sh

# Changes one expression at a time in the pure modules and runs their unit tests: a change that no
# test notices is listed as missed. Takes hours; MUTANTS="--shard 1/20" tests a twentieth. See
# docs/mutants.md.
MODULES ?= wire membership forward table model
mutants: compiler
	for module in $(MODULES); do \
	  tests/mutants.sh $$module $(MUTANTS) || [ $$? = 2 ] || exit 1; \
	done

# After a change of Cargo.lock.
third-party:
	tests/third-party.py

# Sends ten million generated frames to the capture path, changes routes 50,000 times, lets 50
# containers join and leave at random for two minutes, and sends 100,000 membership reports a
# second from unknown hosts for 30 s.
soak: packages dist
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_SOAK_FRAMES=10000000 \
	  cargo test --locked --test netns -- hostile::soak --nocapture
	MCASTOR_EXPLAINED_TABLES=10000 cargo test --release --locked --lib explanation_is_what
	MCASTOR_SOAK_CHANGES=50000 \
	MCASTOR_SOAK_CONTAINERS=50 MCASTOR_SOAK_SECONDS=120 \
	  cargo test --locked --test netns -- soak --skip scale:: --skip hostile:: --nocapture
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_SOAK_SECONDS=30 \
	  cargo test --locked --test netns -- scale::soak --nocapture --test-threads 1

# Compares mcastor with multicast routing in the kernel, in network namespaces. Takes 20 minutes,
# with QUICK=1 two. Needs root. Writes bench/results.
bench: packages
	cargo bench --locked --bench forwarding -- $(if $(QUICK),--quick)

# Time from a report to the first packet, 10,000 groups of 10 sources, joins upstream, and commands
# beside smcroute.
bench-membership: packages dist
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor \
	  cargo test --locked --test netns -- scale:: --skip soak --nocapture --test-threads 1

# Measures single steps of the data path.
micro:
	cargo bench --locked --bench micro

# Rust needs a C compiler to link; installs one if it is missing.
compiler:
	@command -v cc >/dev/null || $(MAKE) --no-print-directory packages PACKAGES="gcc libc6-dev"

packages:
	@tests/install.sh $(PACKAGES)

# What is shipped with each binary.
NOTICES = LICENSE-APACHE LICENSE-MIT THIRD-PARTY.md

# A container image with one static binary on an empty base image. Needs docker and python3.
IMAGE   ?= mcastor
TARGET  ?= x86_64-unknown-linux-gnu
VERSION  = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

image: compiler target/image/mcastor.tar
	docker build --quiet --build-arg VERSION=$(VERSION) --tag $(IMAGE):$(VERSION) --tag $(IMAGE):latest target/image
	for end in mnat-ingress mnat-egress; do \
	  docker build --quiet --build-arg VERSION=$(VERSION) --target $$end \
	    --tag $(IMAGE)-$$end:$(VERSION) --tag $(IMAGE)-$$end:latest target/image || exit 1; \
	done

# Links glibc statically. The explicit target keeps these flags out of the other build folders.
target/image/mcastor.tar: $(shell find src image -type f) Cargo.toml Cargo.lock $(NOTICES)
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile dist --locked --bin mcastor \
	    --target $(TARGET)
	mkdir -p target/image
	cp image/Dockerfile target/image/
	python3 image/archive.py $@ target/$(TARGET)/dist/mcastor

# Runs the examples of conf/compose with that image. `make test` runs them with a debug build.
test-image: packages target/image/mcastor.tar
	MCASTOR_IMAGE_BINARY=$(CURDIR)/target/$(TARGET)/dist/mcastor \
	    cargo test --locked --test netns -- compose

# Not tested so far. Needs a Rust target and a cross compiler:
#   rustup target add aarch64-unknown-linux-gnu; apt-get install gcc-aarch64-linux-gnu
image-aarch64:
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	$(MAKE) target/image/mcastor.tar TARGET=aarch64-unknown-linux-gnu
	docker build --quiet --platform linux/arm64 --build-arg VERSION=$(VERSION) \
	    --tag $(IMAGE):$(VERSION)-arm64 target/image

install: dist
	install -D -m 755 target/dist/mcastor $(DESTDIR)$(PREFIX)/bin/mcastor
	install -D -m 644 --target-directory=$(DESTDIR)$(PREFIX)/share/doc/mcastor $(NOTICES)
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	target/dist/mcastor man > $(DESTDIR)$(PREFIX)/share/man/man1/mcastor.1
	target/dist/mcastor completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/mcastor

# Also installs mcastor as smcrouted, smcroutectl and smcroute, the program of old scripts, with a
# unit. /usr/local/sbin is before /usr/sbin on PATH, so these links hide an installed smcroute until
# they are removed.
install-smcroute: install
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/lib/systemd/system
	for name in smcrouted smcroutectl smcroute; do \
	  ln -sf ../bin/mcastor $(DESTDIR)$(PREFIX)/sbin/$$name || exit 1; \
	done
	install -d $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	for name in smcrouted smcroutectl; do \
	  target/dist/mcastor man $$name > $(DESTDIR)$(PREFIX)/share/man/man8/$$name.8 && \
	  target/dist/mcastor completions bash $$name \
	    > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/$$name || exit 1; \
	done
	sed 's|/usr/local/sbin|$(PREFIX)/sbin|' conf/mcastor-smcroute.service \
	  > $(DESTDIR)$(PREFIX)/lib/systemd/system/mcastor-smcroute.service

clean:
	cargo clean
