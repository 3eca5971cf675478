#!/usr/bin/env bash
# Installs Debian packages that are missing; says nothing when none is. What they bring as services (bird, frr, lvm2) is neither
# started nor enabled: the tests run those programs themselves, in namespaces of their own.
set -euo pipefail
missing=()
for p in "$@"; do
  dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "  installing ${missing[*]}"
policy=/usr/sbin/policy-rc.d # asked by invoke-rc.d(8) and deb-systemd-invoke(1): 101 is "do not"
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 0755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
if [ -d /run/systemd/system ]; then
  for p in "${missing[@]}"; do
    case $p in
    bird2) systemctl --quiet disable bird.service ;;
    frr) systemctl --quiet disable frr.service ;;
    lvm2) systemctl --quiet disable lvm2-monitor.service lvm2-lvmpolld.socket blk-availability.service dm-event.socket ;;
    esac
  done
fi
