package unpacker

import "golang.org/x/sys/unix"

// auditArch is AUDIT_ARCH_AARCH64.
const auditArch = unix.AUDIT_ARCH_AARCH64

// archCalls are calls that are named differently here.
func archCalls() []uintptr { return []uintptr{unix.SYS_FSTATAT} }
