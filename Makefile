# `make demo` and `make test` are all a fresh Debian 12 machine with Rust needs.

PREFIX  ?= /usr/local
# What the tests use besides Rust: other people's programs, as senders, receivers and judges.
PACKAGES = gcc libc6-dev iproute2 iptables tcpdump iperf iputils-ping python3-scapy ethtool curl \
           smcroute util-linux

.PHONY: build demo test soak bench micro check compiler packages install clean

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

# A million hostile frames through the live capture path, and 10,000 changes of routes.
soak: packages
	MCASTOR_SOAK_FRAMES=1000000 MCASTOR_SOAK_CHANGES=50000 cargo test --locked --test netns -- soak --nocapture

# Against the kernel's multicast routing, in namespaces; QUICK=1 takes two minutes, without it
# twenty. Needs root. Results: bench/results.
bench: packages
	cargo bench --locked --bench forwarding -- $(if $(QUICK),--quick)

# The steps of the data path by themselves.
micro:
	cargo bench --locked --bench micro

# Rust links with the C compiler; a machine may have the one without the other.
compiler:
	@command -v cc >/dev/null || $(MAKE) --no-print-directory packages PACKAGES="gcc libc6-dev"

packages:
	@missing=; for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing:$$missing"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends $$missing; \
	fi

install: build
	install -D -m 755 target/release/mcastor $(DESTDIR)$(PREFIX)/bin/mcastor
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	target/release/mcastor man > $(DESTDIR)$(PREFIX)/share/man/man1/mcastor.1
	target/release/mcastor completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/mcastor

clean:
	cargo clean
