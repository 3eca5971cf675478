#!/usr/bin/env bash
# Berth on a machine with a real NVIDIA GPU.
#
#   e2e/gpu/real.sh prepare DIR   on a machine with Go and gcc: build everything that is needed into DIR (50 MB)
#   e2e/gpu/real.sh run DIR OUT   on the machine with the GPU, as root: check, and write what was seen to OUT
#   e2e/gpu/real.sh run DIR OUT --fake h100x1    the same with a profile: shows the plumbing, proves nothing of a GPU
#
# It says what it found. Without a GPU `run` says so and ends with 77, which is neither success nor failure: nothing was
# tested. With --fake it ends as the checks did, and says that they were of a profile.
set -euo pipefail
cd "$(dirname "$0")/../.."
verb=${1:?prepare or run} bin=${2:?directory of programs}

prepare() {
  mkdir -p "$bin"
  bin=$(cd "$bin" && pwd)
  make build BIN="$bin" >/dev/null
  gcc -O1 -o "$bin/vectoradd" e2e/gpu/cuda/vectoradd.c -ldl
  install -m 0755 /bin/busybox "$bin/busybox"
  (cd e2e && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$bin/gpureal" ./cmd/gpureal)
  "$bin/gpureal" image "$bin/cuda.tar" "$bin/busybox" "$bin/vectoradd"
  rm -rf "$bin/registry" "$bin/demo" "$bin/testbox" "$bin/berth-cni" "$bin/cni" # not needed there
  du -sh "$bin"
}

run() {
  local out=${1:?directory for what was seen}; shift
  mkdir -p "$out"
  bin=$(cd "$bin" && pwd) out=$(cd "$out" && pwd)
  local driver=/
  if [ "${1-}" != --fake ]; then
    if [ ! -e /proc/driver/nvidia/version ]; then
      echo "  no NVIDIA driver is loaded here (/proc/driver/nvidia/version is missing): nothing was tested"
      return 77
    fi
    head -1 /proc/driver/nvidia/version | sed 's/^/  /'
    if ! grep -q ' nvidia-uvm$' /proc/devices; then
      echo "  nvidia-uvm is not loaded: CUDA starts on no GPU without it (modprobe nvidia-uvm)"
    fi
    # the driver may be in a directory of its own
    local d
    for d in / /usr/local/nvidia /run/nvidia/driver; do
      if compgen -G "$d/usr/lib*/*/libcuda.so.*.*" >/dev/null || compgen -G "$d/usr/lib64/libcuda.so.*.*" >/dev/null ||
        compgen -G "$d/lib64/libcuda.so.*.*" >/dev/null || compgen -G "$d/lib/libcuda.so.*.*" >/dev/null; then
        driver=$d
        break
      fi
    done
    echo "  driver root: $driver"
  fi
  "$bin/gpureal" run --bin "$bin" --out "$out" --archive "$bin/cuda.tar" --driver "$driver" "$@"
}

case $verb in
prepare) prepare ;;
run) shift 2; run "$@" ;;
*) echo "prepare or run, not $verb" >&2; exit 2 ;;
esac
