package executor

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// capNames are the capabilities by number (capabilities(7)).
func capNames() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
		"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
		"CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
		"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
		"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
		"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

func capName(n int) string {
	if names := capNames(); n < len(names) {
		return names[n]
	}
	return "an unknown capability"
}

// capSets are the five sets as bits.
type capSets struct {
	bounding, effective, inheritable, permitted, ambient uint64
}

// parseCaps translates the spec's sets. Names the kernel does not know are left out, as every runtime does, and so
// are those the shim itself may not give (have): asking for them would fail the whole container.
func parseCaps(c *specs.LinuxCapabilities, last int, have uint64) (*capSets, error) {
	if c == nil {
		return &capSets{}, nil
	}
	names := capNames()
	bits := func(list []string) uint64 {
		var b uint64
		for _, name := range list {
			if n := slices.Index(names, name); n >= 0 && n <= last {
				b |= 1 << n
			}
		}
		return b & have
	}
	return &capSets{
		bounding: bits(c.Bounding), effective: bits(c.Effective), inheritable: bits(c.Inheritable),
		permitted: bits(c.Permitted), ambient: bits(c.Ambient) & bits(c.Permitted) & bits(c.Inheritable),
	}, nil
}
