#!/usr/bin/env bash
# Berth on a machine with a real NVIDIA GPU.
#
#   e2e/gpu/real.sh prepare DIR   on a machine with Go and gcc: build what is needed into DIR, one archive of 30 MB
#   e2e/gpu/real.sh run DIR OUT   on the machine with the GPU, as root: check, and write what was seen to OUT
#   e2e/gpu/real.sh run DIR OUT --fake h100x1    the same with a profile: shows the plumbing, proves nothing of a GPU
#
# It says what it found. OUT gets inventory.json, profile.yaml (the same for --fake), differences.txt (to the built-in
# profiles of that board), cdi.json, status.txt and the programs' logs, whatever fails after them. Without a GPU `run` says so
# and ends with 77, which is neither success nor failure: nothing was tested. With --fake it ends as the checks did, and
# says that they were of a profile.
set -euo pipefail
cd "$(dirname "$0")/../.."
verb=${1:?prepare or run} bin=${2:?directory of programs}

archive=real.tar.gz

prepare() {
  local work
  mkdir -p "$bin"
  bin=$(cd "$bin" && pwd)
  work=$(mktemp -d)
  make build BIN="$work" >/dev/null
  gcc -O1 -o "$work/vectoradd" e2e/gpu/cuda/vectoradd.c -ldl
  (cd e2e && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$work/gpureal" ./cmd/gpureal)
  "$work/gpureal" image "$work/cuda.tar" /bin/busybox "$work/vectoradd"
  tar -C "$work" -czf "$bin/$archive" berth-cri berth-shim berth-gpu gpureal cuda.tar
  rm -rf "$work"
  ls -l "$bin/$archive"
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
  local work code=0
  work=$(mktemp -d)
  tar -C "$work" -xzf "$bin/$archive"
  "$work/gpureal" run --bin "$work" --out "$out" --archive "$work/cuda.tar" --driver "$driver" "$@" || code=$?
  rm -rf "$work"
  return "$code"
}

case $verb in
prepare) prepare ;;
run) shift 2; run "$@" ;;
*) echo "prepare or run, not $verb" >&2; exit 2 ;;
esac
