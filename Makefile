# `make demo` and `make test` are all a fresh Debian 12 machine with Rust needs.

PREFIX  ?= /usr/local
# What the tests use besides Rust: other people's programs, as senders, receivers and judges.
PACKAGES = gcc libc6-dev iproute2 iptables tcpdump iperf iputils-ping python3-scapy ethtool curl \
           smcroute util-linux frr igmpproxy docker.io docker-compose prometheus \
           python3-jsonschema python3-yaml

.PHONY: build demo test soak bench bench-membership micro check compiler packages image image-aarch64 test-image \
        install install-smcroute clean

build:
	cargo build --release --locked

demo: compiler build
	target/release/mcastor demo

# Formatting, lints, documentation, all tests. Ends with the test runner's own count.
test: packages check
	tests/run.sh

check:
	cargo fmt --all -- --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

# A million hostile frames through the live capture path, 50,000 changes of routes, 50 containers
# that join and leave at random for two minutes, and 100,000 reports a second from strangers for 30 s.
soak: packages
	MCASTOR_SOAK_FRAMES=1000000 MCASTOR_SOAK_CHANGES=50000 \
	MCASTOR_SOAK_CONTAINERS=50 MCASTOR_SOAK_SECONDS=120 \
	  cargo test --locked --test netns -- soak --skip scale:: --nocapture
	cargo build --release --locked
	MCASTOR_BINARY=$(CURDIR)/target/release/mcastor MCASTOR_SOAK_SECONDS=30 \
	  cargo test --locked --test netns -- scale::soak --nocapture --test-threads 1

# Against the kernel's multicast routing, in namespaces; QUICK=1 takes two minutes, without it
# twenty. Needs root. Results: bench/results.
bench: packages
	cargo bench --locked --bench forwarding -- $(if $(QUICK),--quick)

# Proxies: from a report to the first packet, and with 10,000 groups of 10 sources.
bench-membership: packages
	cargo build --release --locked
	MCASTOR_BINARY=$(CURDIR)/target/release/mcastor \
	  cargo test --locked --test netns -- scale:: --skip soak --nocapture --test-threads 1

# The steps of the data path by themselves.
micro:
	cargo bench --locked --bench micro

# Rust links with the C compiler; a machine may have the one without the other.
compiler:
	@command -v cc >/dev/null || $(MAKE) --no-print-directory packages PACKAGES="gcc libc6-dev"

packages:
	@tests/install.sh $(PACKAGES)

# An image of one static binary. The base is empty, so nothing is fetched. Needs docker, python3.
IMAGE   ?= mcastor
TARGET  ?= x86_64-unknown-linux-gnu
VERSION  = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

image: compiler target/image/mcastor.tar
	docker build --quiet --build-arg VERSION=$(VERSION) --tag $(IMAGE):$(VERSION) --tag $(IMAGE):latest target/image
	for end in mnat-ingress mnat-egress; do \
	  docker build --quiet --build-arg VERSION=$(VERSION) --target $$end \
	    --tag $(IMAGE)-$$end:$(VERSION) --tag $(IMAGE)-$$end:latest target/image || exit 1; \
	done

# glibc is linked in; an own target folder of its flags, so that nothing else is built anew.
target/image/mcastor.tar: $(shell find src image -type f) Cargo.toml Cargo.lock
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bin mcastor \
	    --target $(TARGET) --config 'profile.release.strip=true'
	mkdir -p target/image
	cp image/Dockerfile target/image/
	python3 image/archive.py $@ target/$(TARGET)/release/mcastor

# The examples of conf/compose with that image; `make test` runs them with a quicker build.
test-image: packages target/image/mcastor.tar
	MCASTOR_IMAGE_BINARY=$(CURDIR)/target/$(TARGET)/release/mcastor \
	    cargo test --locked --test netns -- compose

# Not run by us so far: it needs rustup's target and Debian's cross compiler,
#   rustup target add aarch64-unknown-linux-gnu; apt-get install gcc-aarch64-linux-gnu
image-aarch64:
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	$(MAKE) target/image/mcastor.tar TARGET=aarch64-unknown-linux-gnu
	docker build --quiet --platform linux/arm64 --build-arg VERSION=$(VERSION) \
	    --tag $(IMAGE):$(VERSION)-arm64 target/image

install: build
	install -D -m 755 target/release/mcastor $(DESTDIR)$(PREFIX)/bin/mcastor
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	target/release/mcastor man > $(DESTDIR)$(PREFIX)/share/man/man1/mcastor.1
	target/release/mcastor completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/mcastor

# The names, and the unit, under which users of smcroute know it. /usr/local/sbin stands before
# /usr/sbin on PATH, so that removing the links is the way back.
install-smcroute: install
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/lib/systemd/system
	ln -sf ../bin/mcastor $(DESTDIR)$(PREFIX)/sbin/smcrouted
	ln -sf ../bin/mcastor $(DESTDIR)$(PREFIX)/sbin/smcroutectl
	install -d $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	for name in smcrouted smcroutectl; do \
	  target/release/mcastor man $$name > $(DESTDIR)$(PREFIX)/share/man/man8/$$name.8 && \
	  target/release/mcastor completions bash $$name \
	    > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/$$name || exit 1; \
	done
	sed 's|/usr/local/sbin|$(PREFIX)/sbin|' conf/mcastor-smcroute.service \
	  > $(DESTDIR)$(PREFIX)/lib/systemd/system/mcastor-smcroute.service

clean:
	cargo clean
