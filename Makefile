# Husk's front door. Each target sets up what it needs; nothing else to prepare.
#   make demo      from nothing to a container in its own micro-VM, under real containerd
#   make test      format, lints, unit and end-to-end tests (make unit, make e2e T=name)
#   make e2e SUITE=forky    the end-to-end tests on a node of another Debian suite
#   make e2e-full  all of them, the long ones too, on the nodes of both suites
#   make e2e-openstack      Kuryr's and Zun's own code as callers; part of no other target
#   make node      a root shell on the test node with containerd and this runtime
#   make bench     figures against runc and QEMU; also written to target/bench.json
#   make install   to PREFIX (/usr/local), below DESTDIR; make build; make clean
PREFIX ?= /usr/local
SUITE ?= trixie
# Seconds after which the end-to-end tests are given up.
LIMIT ?= 3000
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release
NODE := $(CURDIR)/tests/node/run --suite $(SUITE)
TESTS = cargo test -p husk-tests --test $(1) -- --test-threads=1 --logfile /run/results/verdicts
E2E = $(call TESTS,e2e) $(MORE)
# All tests in parts, a node each, two at a time: an emulated node uses one CPU.
PARTS = ctr_ cri_ comparison "--skip ctr_ --skip cri_ --skip comparison"
PART = $(or $(filter-out -%,$(firstword $(T))),rest)
ON_NODE = CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(NODE) $(1)"

.PHONY: build kernel agent programs demo test lint unit e2e part e2e-forky e2e-full e2e-openstack node bench install clean

build: kernel agent programs

kernel: host
	kernel-config/build.sh

agent: host
	guest-agent/image.sh

programs: host
	cargo build --release -p husk-vmm -p husk-shim

.PHONY: host
host:
	@tests/node/host-packages.sh cc:gcc protoc:protobuf-compiler ld:binutils cpio:cpio mkfs.ext4:e2fsprogs debootstrap:debootstrap

demo: build
	$(NODE) tests/demo.sh

test: lint unit e2e

lint: host
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
# Their targets are no tests of `cargo test`, so that --all-targets leaves them out.
	cargo clippy -p husk-tests --test e2e --test openstack -- -D warnings

unit: host
	cargo test --workspace --exclude husk-tests
	cargo test -p husk-tests --lib --test docs

# The images are made before two nodes would do it at once.
e2e: build
	cargo test -p husk-tests --test e2e --no-run
ifneq ($(T),)
	$(MAKE) part
else
	for suite in forky $(SUITE); do tests/node/image.sh $$suite >/dev/null || :; done
	printf '%s\n' $(PARTS) | xargs -d '\n' -P 2 -I{} tests/node/part.sh $(SUITE) {}
endif

# One node's share of the tests, with what was built.
part:
	$(call ON_NODE,--timeout $(LIMIT) --results $(CURDIR)/target/e2e/$(SUITE)/$(PART)) $(E2E) $(T)

# What depends on the versions of containerd and CNI's plugins: enough to see that the others work.
FORKY = ctr_run::hello ctr_run::the_exit_code ctr_exec::an_exec_has_its_own \
	ctr_signals::the_events_of_a_container ctr_signals::a_signal_ends \
	ctr_stdin::what_goes_in ctr_stdin::lengths_around failures::a_killed_shim \
	cri_sandbox_api:: network_plugins::a_link_that_leads network_direct::a_tap_of_cni
e2e-forky: build
	$(MAKE) e2e SUITE=forky T='$(FORKY)'

e2e-full: build
	$(MAKE) e2e SUITE=trixie LIMIT=9000 MORE=--include-ignored
	$(MAKE) e2e SUITE=forky LIMIT=9000 MORE=--include-ignored

e2e-openstack: build
	cargo test -p husk-tests --test openstack --no-run
	python=$$(tests/openstack/python.sh) && \
	$(call ON_NODE,--carry $(CURDIR)/tests/openstack --carry $$python --timeout $(LIMIT) \
		--results $(CURDIR)/target/e2e/$(SUITE)/openstack) $(call TESTS,openstack) $(T)

node: build
	$(NODE) --shell

bench: build
	$(call ON_NODE,--counted --timeout $(LIMIT) --results $(CURDIR)/target/bench) cargo run --release -p husk-tests --bin bench
	cp target/bench/bench.json target/bench.json

install: build
	install -D -t $(DESTDIR)$(PREFIX)/bin $(RELEASE)/containerd-shim-rust-v2
	install -D -t $(DESTDIR)$(PREFIX)/lib/husk $(RELEASE)/husk-vmm
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/husk target/guest/vmlinux target/guest/initramfs.cpio

clean:
	cargo clean
