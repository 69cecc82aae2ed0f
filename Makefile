# On a fresh Debian 12 machine with Rust, `make demo` and `make test` install what they need.

PREFIX  ?= /usr/local
# Programs that the tests use besides Rust: senders, receivers, peers and validators.
PACKAGES = gcc libc6-dev iproute2 iptables tcpdump iperf iputils-ping python3-scapy ethtool curl \
           smcroute util-linux frr igmpproxy docker.io docker-compose podman prometheus \
           python3-jsonschema python3-yaml python3-zeroconf python3-httpx python3-h2 avahi-daemon \
           minidlna wsdd mandoc clang-14 llvm-14 libbpf-dev bpftool etcd-server bind9 nsd tshark tmux
PACKAGES += python3-venv $(DISCOVERY_PACKAGES)
# Programs of discovery protocols, 12 MB.
DISCOVERY_PACKAGES = avahi-utils dbus-daemon cups-ipp-utils cyclonedds-tools knxd \
                     libcoap3-bin llmnrd minisapserver python3-gi gir1.2-gssdp-1.6
# What tests in user-mode Linux need. Not every Debian has it.
UML_PACKAGES = user-mode-linux busybox-static kmod cpio xz-utils

.PHONY: build dist dist-binary deb demo test test-packet test-kernels soak bench bench-membership micro check supply-chain \
        test-page third-party mutants compiler packages cross image test-image test-package test-helm \
        install install-files install-smcroute offload-program clean

# The label `revision` of mcastor_build_info.
dist dist-binary image deb: export MCASTOR_REVISION := \
  $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)

# Optimised, without LTO.
build:
	cargo build --release --locked

# What is installed: with LTO and without symbols, which takes longer.
dist-binary: compiler
	cargo build --profile dist --locked

# What is released: target/dist-packages has a tarball for each of these targets, with one static
# binary, manual pages, completions, unit and settings; a bill of materials, and SHA256SUMS. Runs
# each binary, those of another architecture under qemu-user.
TARGETS ?= x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu
dist: compiler cross
	image/dist.sh $(TARGETS)

# The Debian packages of these targets, with the same binaries.
deb: dist
	image/deb.sh $(TARGETS)

# What cross-building needs besides Rust.
cross:
ifneq ($(filter aarch64%,$(TARGETS)),)
	@$(MAKE) --no-print-directory packages PACKAGES="gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static"
endif

# Installs the Debian package in a fresh Debian 12, boots it with systemd in namespaces of its own,
# forwards a packet, reloads, stops and purges. Needs root.
test-package:
	@$(MAKE) --no-print-directory deb TARGETS=x86_64-unknown-linux-gnu
	@$(MAKE) --no-print-directory packages PACKAGES="debootstrap util-linux"
	tests/package.sh target/dist-packages/mcastor_*_amd64.deb

# Uses the page at / in headless Chromium: figures under traffic, search in 10,000 flows, keyboard,
# phone, and axe-core. Installs Chromium (400 MB), and npm for axe-core. MCASTOR_BLESS=1 writes the
# pictures in docs/.
test-page: packages
	@$(MAKE) --no-print-directory packages PACKAGES="chromium python3-websocket"
	@command -v npm >/dev/null || $(MAKE) --no-print-directory packages PACKAGES=npm
	MCASTOR_AXE=$$(tests/page/axe.sh) cargo test --locked --test netns -- page_browser:: --nocapture

# Renders conf/helm with Helm, as a library from PyPI (75 MB), and checks the manifests.
test-helm: packages
	tests/kubernetes/helm.sh

# Compiles the BPF programs of the eBPF plane. The result is checked in, because a build must not need
# clang; a test compares the two.
offload-program: packages
	src/sys/offload/build.sh src/sys/offload/forward.o

demo: compiler build
	target/release/mcastor demo

# Formatting, lints, documentation, dependencies and all tests. The last line is the number of tests.
test: packages check supply-chain
	-@$(MAKE) --no-print-directory packages PACKAGES="$(UML_PACKAGES)"
	-@$(MAKE) --no-print-directory pypi
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

# Runs the attacks at full size, changes a flow that the kernel forwards a thousand times in each way,
# at 100,000 packets a second, changes its routes 10,000 times, replaces the process 100 times in each
# capture mode at 100,000 packets a second, kills it 100 times as a router, a proxy and an end of
# multicast NAT, restarts it 1,000 times, sends 100,000 random packets through
# both planes, sends ten million generated frames to the capture path, changes routes 50,000 times,
# lets 50 containers join and leave at random for two minutes, and sends 100,000 membership reports a
# second from unknown hosts for 30 s. Compares the MNAT server with a model in a million steps, kills
# it 100 times under load, alone and between two ends, and serves 10,000 watchers.
soak: packages dist-binary
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor \
	  cargo test --locked --test netns -- attacks:: --nocapture --test-threads 1
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_SOAK_HAND_OVERS=1000 \
	  cargo test --locked --test netns -- ebpf::changes --nocapture --test-threads 1
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_SOAK_ROUTE_CHANGES=10000 \
	  cargo test --locked --test netns -- ebpf::route_changes --nocapture
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_SOAK_UPGRADES=100 \
	  cargo test --locked --test netns -- upgrade::upgrades --nocapture --test-threads 1
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_SOAK_RESTARTS=100 \
	  cargo test --locked --test netns -- killed_ --nocapture --test-threads 1
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_SOAK_RESTARTS=1000 \
	  cargo test --locked --test netns -- restarts:: --skip killed_ --nocapture --test-threads 1
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_SOAK_PACKETS=100000 \
	  cargo test --locked --test netns -- planes_compared --nocapture
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_SOAK_FRAMES=10000000 \
	  cargo test --locked --test netns -- hostile::soak --nocapture
	MCASTOR_EXPLAINED_TABLES=10000 cargo test --release --locked --lib explanation_is_what
	MCASTOR_MODEL_STEPS=1000000 cargo test --release --locked --lib -- \
	  server_behaves_as servers_with_a_shared_store --nocapture
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_KILLS=100 MCASTOR_MNAT_WATCHERS=10000 \
	  cargo test --locked --test mnat_server -- under_load many_watchers --nocapture --test-threads 1
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_MNAT_KILLS=100 \
	  cargo test --locked --test netns -- mnat_server::streams_survive --nocapture
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_ETCD_FAULTS=100 MCASTOR_ETCD_JOINS=200 \
	  cargo test --locked --test netns -- mnat_etcd::faults --nocapture
	MCASTOR_SOAK_CHANGES=50000 \
	MCASTOR_SOAK_CONTAINERS=50 MCASTOR_SOAK_SECONDS=120 \
	  cargo test --locked --test netns -- soak --skip scale:: --skip hostile:: --nocapture
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor MCASTOR_SOAK_SECONDS=30 \
	  cargo test --locked --test netns -- scale::soak --nocapture --test-threads 1

# Runs the tests of discovery, with all programs that they need. They include those of Docker.
test-discovery: packages pypi
	cargo test --locked --test netns -- discovery --nocapture

# Programs of Python that Debian does not have, in target/pypi.
.PHONY: pypi test-discovery bench-discovery
pypi:
	@tests/pypi.sh

# Runs the ingress and the egress of the MNAT prototype with our server and our ends. PROTOTYPE is a
# clone of https://github.com/GrumpyOldTroll/mnat. Installs Debian packages (40 MB), and one from PyPI.
.PHONY: test-prototype
test-prototype: packages
	@$(MAKE) --no-print-directory packages PACKAGES="python3-dev python3-twisted python3-openssl \
	  python3-service-identity python3-watchdog python3-psutil cython3 libpcap-dev"
	@tests/mnat-prototype.sh
	MCASTOR_MNAT_PROTOTYPE=$(abspath $(PROTOTYPE)) \
	  cargo test --locked --test netns -- mnat_prototype:: --nocapture --test-threads 1

# Runs the tests in network namespaces with the packet plane. By default they use the eBPF plane where
# the kernel permits it.
test-packet: packages
	MCASTOR_TEST_PLANE=packet cargo test --locked --test netns

# Runs tests inside the kernels of Debian 11, 12 and 13, the newest one, and user-mode Linux, without
# KVM. Builds the AMT driver of Linux for the kernel of Debian 12. Downloads 550 MB, mostly to
# target/kernels. Takes hours; KERNELS="6.1 uml" runs two of them.
KERNELS ?= 5.10 6.1 6.12 newest uml
test-kernels: packages
	@$(MAKE) --no-print-directory packages PACKAGES="$(UML_PACKAGES) qemu-system-x86"
	tests/kernels/run.py $(KERNELS)

# Compares mcastor with multicast routing in the kernel, in network namespaces. Takes 20 minutes,
# with QUICK=1 two. Needs root. Writes bench/results.
bench: packages
	cargo bench --locked --bench forwarding -- $(if $(QUICK),--quick)

# Time from a report to the first packet, 10,000 groups of 10 sources, joins upstream, and commands
# beside smcroute.
bench-membership: packages dist-binary
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor \
	  cargo test --locked --test netns -- scale:: --skip soak --nocapture --test-threads 1

# Multicast DNS with 1,000 services and 200 askers: packets, CPU and memory of [[discovery]], of
# avahi's reflector and of plain routes. docs/measurements.md has the figures.
bench-discovery: packages dist-binary
	MCASTOR_BINARY=$(CURDIR)/target/dist/mcastor \
	  cargo test --locked --test netns -- discovery_scale:: --nocapture --test-threads 1

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

# Container images with one static binary on an empty base image: mcastor, the two ends of MNAT, and
# mcastor:debug with a shell. Needs docker, or ENGINE=podman. For example
# PLATFORMS=linux/amd64,linux/arm64 builds tags such as mcastor:0.1.0-arm64 too: docs/install.md.
IMAGE     ?= mcastor
PLATFORMS ?= linux/amd64
TARGET     = x86_64-unknown-linux-gnu

image: compiler
	$(if $(findstring arm64,$(PLATFORMS)),@$(MAKE) --no-print-directory cross)
	@$(MAKE) --no-print-directory packages PACKAGES=busybox-static
	image/image.sh $(IMAGE) $(PLATFORMS)

# Links glibc statically. The explicit target keeps these flags out of the other build folders.
target/image/mcastor.tar: $(shell find src image -type f) Cargo.toml Cargo.lock $(NOTICES)
	image/build.sh $(TARGET)
	mkdir -p target/image
	cp image/Dockerfile target/image/
	python3 image/archive.py $@ target/$(TARGET)/dist/mcastor

# Runs the examples of conf/compose with that image. `make test` runs them with a debug build.
test-image: packages target/image/mcastor.tar
	MCASTOR_IMAGE_BINARY=$(CURDIR)/target/$(TARGET)/dist/mcastor \
	    cargo test --locked --test netns -- compose

# Installs below PREFIX, and the settings in SYSCONFDIR unless they exist.
SYSCONFDIR ?= /etc
install: dist-binary
	@$(MAKE) --no-print-directory install-files

# BINARY is installed. RUN starts it here; it prints the manual pages and completions.
BINARY ?= target/dist/mcastor
RUN    ?= $(BINARY)
SHARE   = $(DESTDIR)$(PREFIX)/share
UNITS   = $(DESTDIR)$(PREFIX)/lib/systemd/system
install-files:
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/mcastor
	install -D -m 644 --target-directory=$(SHARE)/doc/mcastor $(NOTICES)
	install -D -m 644 conf/mcastor.schema.json $(SHARE)/mcastor/mcastor.schema.json
	install -d $(SHARE)/doc/mcastor/examples $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions \
	  $(SHARE)/fish/vendor_completions.d $(UNITS) $(DESTDIR)$(SYSCONFDIR)/mcastor
	for file in conf/*.toml; do \
	  sed '1s|\./|$(PREFIX)/share/mcastor/|' $$file > $(SHARE)/doc/mcastor/examples/$${file##*/} || exit 1; \
	done
	$(RUN) man --directory $(SHARE)/man
	$(RUN) completions bash > $(SHARE)/bash-completion/completions/mcastor
	$(RUN) completions zsh > $(SHARE)/zsh/site-functions/_mcastor
	$(RUN) completions fish > $(SHARE)/fish/vendor_completions.d/mcastor.fish
	sed 's|/usr/bin|$(PREFIX)/bin|' conf/systemd/mcastor.service > $(UNITS)/mcastor.service
	[ -e $(DESTDIR)$(SYSCONFDIR)/mcastor/mcastor.toml ] || sed '1s|/usr|$(PREFIX)|' \
	  conf/systemd/mcastor.toml > $(DESTDIR)$(SYSCONFDIR)/mcastor/mcastor.toml

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
	sed 's|/usr/local/sbin|$(PREFIX)/sbin|' conf/systemd/mcastor-smcroute.service \
	  > $(DESTDIR)$(PREFIX)/lib/systemd/system/mcastor-smcroute.service

clean:
	cargo clean
