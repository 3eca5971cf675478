#!/usr/bin/env bash
# Builds the upstream programs that Berth is tested with and measured against, each once: a stamp holds the hash of
# the module files and the arguments it was built from. With "run" only those that `make run` shows Berth with.
set -euo pipefail
out=$1 what=${2:-all}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
export GOFLAGS=-mod=readonly

build() { # module, cgo, tags, then package=program pairs; a program that ends in .test is a test binary
  local module=$1 cgo=$2 tags=$3; shift 3
  local dir=$here/build/$module hash stamp
  hash=$( (cat "$dir"/go.mod "$dir"/go.sum; find "$dir" -maxdepth 1 -name '*.go' -exec cat {} +; printf '%s\n' "$cgo" "$tags" "$@") | sha256sum | cut -c1-16)
  stamp=$out/.$module.$hash
  [ -e "$stamp" ] && return 0
  echo "  building $module (once; $(go env GOVERSION))"
  local start=$SECONDS pair
  for pair in "$@"; do
    local pkg=${pair%%=*} prog=${pair##*=}
    if [[ $prog == critest || $prog == *.test ]]; then
      (cd "$dir" && CGO_ENABLED=$cgo go test -c -trimpath -ldflags '-s -w' -o "$out/$prog" "$pkg")
    else
      (cd "$dir" && CGO_ENABLED=$cgo go build -trimpath -buildvcs=false -tags "$tags" -ldflags '-s -w' -o "$out/$prog" "$pkg")
    fi
  done
  rm -f "$out/.$module".*
  touch "$stamp"
  echo "  built    $module in $((SECONDS - start)) s"
}

build critest 0 '' sigs.k8s.io/cri-tools/cmd/crictl=crictl sigs.k8s.io/cri-tools/cmd/critest=critest
c=github.com/containerd/containerd/v2/cmd
if [ "$what" = all ]; then
build containerd 0 no_btrfs $c/containerd=containerd $c/containerd-shim-runc-v2=containerd-shim-runc-v2
build runc 1 seccomp github.com/opencontainers/runc=runc
p=github.com/containernetworking/plugins/plugins
build plugins 0 '' $p/main/bridge=bridge $p/main/ptp=ptp $p/main/loopback=loopback $p/ipam/host-local=host-local \
  $p/ipam/static=static $p/meta/portmap=portmap $p/meta/bandwidth=bandwidth $p/meta/firewall=firewall \
  $p/meta/tuning=tuning github.com/containernetworking/cni/cnitool=cnitool
t=github.com/containernetworking/plugins
build cnitests 0 '' $t/integration=cni-integration.test $t/plugins/main/loopback=cni-loopback.test \
  $t/plugins/meta/portmap=cni-portmap.test $t/plugins/meta/firewall=cni-firewall.test \
  $t/pkg/testutils/echo/server=cni-echo-server $t/pkg/testutils/echo/client=cni-echo-client
fi
echo "  the kubelet takes 3 to 7 minutes the first time" >"$out/.note"
[ -e "$out/kubelet" ] || cat "$out/.note"
build kubelet 0 '' k8s.io/kubernetes/cmd/kubelet=kubelet
rm -f "$out/.note"
if [ "$what" = all ]; then
# The control plane and a kubelet in one program, for the tests that need a cluster: linking it is what takes the time.
build cluster 0 '' .=cluster
k=github.com/kubernetes-csi
build csiprovisioner 0 '' $k/external-provisioner/v6/cmd/csi-provisioner=csi-provisioner
build csisidecars 0 '' $k/external-resizer/v2/cmd/csi-resizer=csi-resizer $k/external-snapshotter/v8/cmd/csi-snapshotter=csi-snapshotter \
  $k/external-snapshotter/v8/cmd/snapshot-controller=snapshot-controller
mkdir -p "$out/crds" # upstream's definitions of VolumeSnapshot and its kin, as a cluster's operator installs them
install -m 0644 "$(cd "$here/build/csisidecars" && go list -m -f '{{.Dir}}' $k/external-snapshotter/client/v8)"/config/crd/*snapshot*.yaml "$out/crds/"
build csisanity 0 '' github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity=csi-sanity
build kubeproxy 0 '' k8s.io/kubernetes/cmd/kube-proxy=kube-proxy
# With cgo: one of its backends does not compile without.
build flannel 1 '' github.com/flannel-io/flannel=flanneld
fi

# Debian's dynamic busybox is the test images' shell: unlike the static one it looks its commands up on the path,
# which the suite's masked /bin/ls needs. The two packages exclude each other, so this one is only unpacked.
if [ ! -e "$out/busybox-sh" ]; then
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  (cd "$tmp" && apt-get download -qq busybox 2>/dev/null && dpkg-deb -x busybox_*.deb x)
  install -m 0755 "$tmp/x/bin/busybox" "$out/busybox-sh"
fi
