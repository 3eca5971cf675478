# Berth: everything between a kubelet and the kernel. `make run` shows it, `make test` proves it.

SHELL      := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GO      ?= go
BIN     := $(CURDIR)/bin
TOOLS   := $(CURDIR)/.cache/tools
OUT     := $(CURDIR)/out
LDFLAGS := -s -w -buildid= -X main.version=$(VERSION)
# Static, reproducible: the same commit gives the same bytes.
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'

GPU      := deviceplugin/cmd/berth-gpu
PROGRAMS := cri/cmd/berth-cri shim/cmd/berth-shim cni/cmd/berth-cni cni/cmd/berth-netd cni/cmd/berth-bgp csi/cmd/berth-csi deviceplugin/cmd/berth-gpu-dra
# The upstream plugins that berth-cni replaces, each under its own name.
UPSTREAM := bridge ptp host-local static loopback portmap bandwidth firewall tuning
RUN_PACKAGES := busybox-static nftables iptables iproute2 procps util-linux gcc libc6-dev
VM_PACKAGES  := qemu-system-x86 kmod apparmor e2fsprogs
PACKAGES := $(RUN_PACKAGES) iputils-ping conntrack dbus-daemon strace libseccomp-dev pkg-config e2fsprogs xfsprogs btrfs-progs fio bird2 frr ethtool

export GOFLAGS := -mod=readonly

.PHONY: help
help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install the Debian packages that builds and tests need
	@./e2e/setup.sh $(PACKAGES)

.PHONY: setup-run
setup-run:
	@./e2e/setup.sh $(RUN_PACKAGES)

.PHONY: build
build: ## Build Berth's programs into bin/
	@mkdir -p $(BIN)
	@for p in $(PROGRAMS); do $(BUILD) -o $(BIN)/ ./$$p; done
	@mkdir -p $(BIN)/cni $(BIN)/plugins && ln -f $(BIN)/berth-cni $(BIN)/cni/berth # a plugin's file is named by its type
	@for p in berth $(UPSTREAM); do ln -f $(BIN)/berth-cni $(BIN)/plugins/$$p; done
	@CGO_ENABLED=1 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o $(BIN)/ ./$(GPU) # NVML is loaded at run time
	@cd e2e && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o $(BIN)/ ./testbox ./cmd/registry ./cmd/demo
	@ls -l $(addprefix $(BIN)/,$(notdir $(PROGRAMS) $(GPU))) | awk '{printf "  %-10s %5.1f MB\n", gensub(".*/","",1,$$9), $$5/1e6}' 2>/dev/null || true

.PHONY: tools
tools: ## Build the upstream kubelet, crictl, critest, containerd, runc and CNI plugins, once
	@./e2e/build.sh $(TOOLS)

.PHONY: run
run: setup-run build ## A real kubelet on Berth, with a pod that answers
	@./e2e/build.sh $(TOOLS) run
	@$(BIN)/demo --bin $(BIN) --tools $(TOOLS) run

.PHONY: stop
stop: ## End what `make run` started, and prove that nothing is left
	@if [ -x $(BIN)/demo ]; then $(BIN)/demo --bin $(BIN) --tools $(TOOLS) stop && echo "  stopped: no process, mount, namespace, link, cgroup, table or file is left"; fi

.PHONY: test
test: setup build tools test-unit test-e2e ## Every test: packages with -race, then the end-to-end suites' quick part

.PHONY: test-unit
test-unit: ## Test every package, on the real kernel, with -race
	BERTH_TEST_RUNC=$(TOOLS)/runc $(GO) test -race -p 2 -timeout 20m $$($(GO) list ./... | grep -v /cni/test)
	BERTH_TEST_UPSTREAM_CNI=$(TOOLS) $(GO) test -race -p 1 -timeout 20m ./cni/test/... # traffic has times to keep: alone

.PHONY: test-e2e
test-e2e: ## The real kubelet, the whole conformance suite over SPDY, and a few kills of each sort
	cd e2e && BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) $(GO) test -p 1 -timeout 40m ./...
	cd e2e/gpu/manager && CGO_ENABLED=0 BERTH_BIN=$(BIN) $(GO) test -trimpath -timeout 10m .

.PHONY: check
check: ## Formatting, vet, staticcheck, errcheck, errorlint, vulnerabilities, import rules
	@./e2e/check.sh

.PHONY: conformance-cri
conformance-cri: setup build tools ## critest on Berth and on containerd, both in this run, over SPDY and WebSocket
	@mkdir -p $(OUT)
	cd e2e && BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) BERTH_OUT=$(OUT) $(GO) run ./cmd/conformance

.PHONY: conformance-csi
conformance-csi: setup build tools ## csi-sanity 5.6 on every backend of berth-csi, those with project quota or LVM in a virtual machine
	@./e2e/setup.sh $(VM_PACKAGES) lvm2 thin-provisioning-tools
	@mkdir -p $(OUT) .cache/vm
	cd e2e && BERTH_VM=$(CURDIR)/.cache/vm BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) BERTH_OUT=$(OUT) $(GO) run ./cmd/csiconformance
	for f in driver:FuzzRequests volume:FuzzIDs volume:FuzzPaths; do \
	  $(GO) test ./csi/internal/$${f%:*} -run '^$$' -fuzz "^$${f#*:}\$$" -fuzztime 20s -fuzzminimizetime 10x; done

.PHONY: conformance-cni
conformance-cni: setup build tools ## Upstream's own tests and containerd on berth-cni, then the CNI suite on both, a column for each
	cd e2e && $(GO) run ./cmd/cni-upstream $(BIN)/plugins $(TOOLS) $$(cd build/cnitests && $(GO) list -m -f '{{.Dir}}' github.com/containernetworking/plugins)
	cd e2e && BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) BERTH_OUT=$(OUT) $(GO) run ./cmd/cni-runtime
	cd e2e && $(GO) run ./cmd/cni-conform -backend iptables berth=$(BIN)/plugins
	cd e2e && $(GO) run ./cmd/cni-conform berth=$(BIN)/plugins upstream=$(TOOLS)

.PHONY: test-vm
test-vm: ## Boot a virtual machine with Debian's 6.12 kernel and ask it who it is
	@./e2e/setup.sh $(VM_PACKAGES)
	@mkdir -p .cache/vm
	cd e2e && BERTH_VM=$(CURDIR)/.cache/vm $(GO) test -count=1 -v ./vm

.PHONY: test-power
test-power: build ## Kill a virtual machine while berth-csi makes, snapshots, grows and deletes, boot it on the same disk: nothing lost
	@./e2e/setup.sh $(VM_PACKAGES) btrfs-progs xfsprogs
	@mkdir -p .cache/vm
	cd e2e && BERTH_BIN=$(BIN) BERTH_VM=$(CURDIR)/.cache/vm $(GO) test -count=1 -v -timeout 180m ./powercut

.PHONY: conformance-vm
conformance-vm: setup build tools ## critest in a virtual machine: pure cgroup v2, cgroupfs and systemd, AppArmor. Slow: the processor is emulated
	@./e2e/setup.sh $(VM_PACKAGES)
	@mkdir -p .cache/vm
	cd e2e && BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) BERTH_VM=$(CURDIR)/.cache/vm $(GO) test -count=1 -v -timeout 60m ./guest

.PHONY: bench-cri
bench-cri: setup build tools ## Berth against containerd + runc and the kernel's floor, interleaved; writes out/bench/cri.json
	@mkdir -p $(OUT)/bench
	cd e2e && BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) BERTH_OUT=$(OUT) $(GO) run ./cmd/bench

.PHONY: bench-executor
bench-executor: setup build tools ## The executor alone against runc, and against Debian's crun in a virtual machine; writes out/bench/executor.json
	@./e2e/setup.sh $(VM_PACKAGES) crun
	@mkdir -p $(OUT)/bench .cache/vm
	$(BUILD) -o $(BIN)/ ./cri/test/versus
	cd e2e && BERTH_VM=$(CURDIR)/.cache/vm BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) BERTH_OUT=$(OUT) $(GO) run ./cmd/bench-executor

.PHONY: bench-csi
bench-csi: setup build tools ## berth-csi against a no-op driver and the upstream sidecars; writes out/bench/csi.json
	@mkdir -p $(OUT)/bench
	$(BUILD) -o $(BIN)/ ./csi/test/noop
	cd e2e && BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) BERTH_OUT=$(OUT) $(GO) run ./cmd/csibench

.PHONY: oracle-specs
oracle-specs: setup build tools ## Collect the OCI specs that critest and the kubelet's tests make anew: shim/test runs them on runc too
	rm -f shim/test/testdata/specs.json
	cd e2e && BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) BERTH_ORACLE_SPECS=1 $(GO) test -count=1 -p 1 ./critest ./kubelet

.PHONY: bench-cni
bench-cni: setup build tools ## berth-cni against the upstream plugins, interleaved; writes out/bench/cni.json
	@mkdir -p $(OUT)/bench
	CGO_ENABLED=0 $(GO) build -o $(OUT)/bench/fill ./cni/test/fill
	cd e2e && BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) BERTH_OUT=$(OUT) BERTH_FILL=$(OUT)/bench/fill $(GO) run ./cmd/bench-cni

.PHONY: conformance-net
conformance-net: setup build tools conformance-bgp ## berth-netd on nodes that are namespaces: every mode, a cluster's life, 200 kills; a real API server; the move from flannel
	BERTH_TORTURE=1 $(GO) test -count=1 -timeout 20m -v ./cni/test/netd ./cni/internal/datapath
	cd e2e && BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) $(GO) test -count=1 -timeout 10m -v ./netd
	for f in strictyaml:FuzzDecode fabric:FuzzParse kube:FuzzAnnotations rtnl:FuzzParse offload:FuzzParse; do \
	  $(GO) test ./cni/internal/$${f%:*} -run '^$$' -fuzz "^$${f#*:}\$$" -fuzztime 30s; done

.PHONY: bench-net
bench-net: setup build tools bench-bgp ## berth-netd against flannel, interleaved; writes out/bench/net.json
	@mkdir -p $(OUT)/bench
	cd e2e && BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) BERTH_OUT=$(OUT) $(GO) run ./cmd/bench-net

.PHONY: torture
torture: setup build tools ## Kill the daemon 500 times and a shim 200 times under load, at every failpoint and system call, let each call fail, and a model of the CRI; writes out/torture.json
	@mkdir -p $(OUT) && rm -f $(OUT)/torture.json
	BERTH_TORTURE=1 $(GO) test -count=1 -timeout 20m -run 'TestEntry|TestRacing' -v ./shim/test
	cd e2e && BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) BERTH_OUT=$(OUT) BERTH_TORTURE=1 $(GO) test -count=1 -p 1 -timeout 150m -v ./torture

.PHONY: soak
soak: setup build tools ## 5 pods a second for an hour with an upgrade every 10 minutes (BERTH_SOAK=5m: a short one): nothing may grow; writes out/soak.json
	@mkdir -p $(OUT)/next
	@for p in cri/cmd/berth-cri shim/cmd/berth-shim cni/cmd/berth-netd; do CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid= -X main.version=$(VERSION)-next' -o $(OUT)/next/ ./$$p; done
	cd e2e && BERTH_BIN=$(BIN) BERTH_SOAK_NEXT=$(OUT)/next BERTH_TOOLS=$(TOOLS) BERTH_OUT=$(OUT) $(GO) run ./cmd/soak 2>&1 | grep -vE "^[IEW][0-9]{4} " # client-go tells of every stream that an upgrade cuts

.PHONY: torture-images
torture-images: setup ## 1,000 power cuts while pulling, a symlink racer of 100,000 iterations, every hostile layer and registry
	BERTH_TORTURE=1 $(GO) test -count=1 -timeout 40m -run 'PowerCuts|Racer|Corpus|Rogue|Stranger' -v ./cri/internal/image ./cri/internal/unpacker

.PHONY: torture-cni
torture-cni: setup ## 10,000 ADD and DEL by 64 processes with SIGKILL, 50 reboots without DEL, fuzzing of all input
	BERTH_TORTURE=1 $(GO) test -count=1 -timeout 40m -run 'Torture|Mutated' -v ./cni/test
	for f in dropin:FuzzParse netconf:FuzzParse netconf:FuzzRequest spec:FuzzDecode hostlocal:FuzzDirectory; do \
	  $(GO) test ./cni/internal/$${f%:*} -run '^$$' -fuzz "^$${f#*:}\$$" -fuzztime 60s; done

.PHONY: conformance-bgp
conformance-bgp: setup ## berth-bgp against BIRD 2 and FRR, both directions: every cell of the matrix, malformed messages, fuzzing
	cd cni/test/bgp && BERTH_CONFORMANCE=1 $(GO) test -count=1 -timeout 20m # without a package's name: then what it prints is shown
	$(GO) test ./cni/internal/bgp/channel -run '^$$' -fuzz '^FuzzReport$$' -fuzztime 20s -fuzzminimizetime 10x

.PHONY: bench-bgp
bench-bgp: setup ## 10,000 routes from BIRD through berth-bgp to the kernel, and from BIRD through BIRD; writes out/bench/bgp.json
	@mkdir -p $(OUT)/bench
	BERTH_BENCH_OUT=$(OUT)/bench/bgp.json $(GO) test -count=1 -timeout 20m -run '^TestBenchRoutes$$' -v ./cni/test/bgp

.PHONY: mutants
mutants: setup tools ## Break Berth in 103 ways, one at a time: each has to fail the test that is named for it
	cd e2e && $(GO) run ./cmd/mutants -root .. -tools $(TOOLS)

.PHONY: conformance-gpu
conformance-gpu: setup build tools ## berth-gpu below the kubelet's device manager, a kubelet, and a whole cluster with DRA: 200 restarts, 100 kills, faults
	cd e2e/gpu/manager && CGO_ENABLED=0 BERTH_BIN=$(BIN) BERTH_GPU_FULL=1 $(GO) test -trimpath -count=1 -timeout 20m -v . 2>&1 | grep -vE '^[IEW][0-9]{4} '
	cd e2e && BERTH_BIN=$(BIN) BERTH_TOOLS=$(TOOLS) BERTH_DRIVERS=$(CURDIR)/.cache/drivers $(GO) test -count=1 -p 1 -timeout 10m -v ./gpureal ./gpu ./gpucluster 2>&1 | grep -vE '^[IEW][0-9]{4} '

.PHONY: bench-gpu
bench-gpu: setup build ## berth-gpu over its sockets on sixteen GPUs; writes out/bench/gpu.json
	cd e2e && BERTH_BIN=$(BIN) BERTH_OUT=$(OUT) $(GO) run ./cmd/bench-gpu

.PHONY: clean
clean: stop ## Remove what was built; the tools' cache stays
	rm -rf $(BIN) $(OUT)
