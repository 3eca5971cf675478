// Package podinit is the first process of a pod's own pid namespace (shareProcessNamespace, hostPID excepted): a
// program of a few instructions that collects orphans and does nothing else, as a static ELF file of some 200
// bytes that this package writes byte by byte. It replaces the pause container.
//
// What it does, in C:
//
//	rt_sigprocmask(SIG_BLOCK, {SIGCHLD}); for (;;) { while (wait4(-1, 0, 0, 0) > 0); rt_sigtimedwait({SIGCHLD}); }
//
// Process 1 of a pid namespace gets only the signals it has handlers for from inside it, so nothing in the pod can
// end it; the supervisor's SIGKILL comes from outside and does.
package podinit

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/internal/tinyelf"
)

// Image makes the program in a sealed memfd. The caller closes it; a running process keeps its own hold.
func Image() (*os.File, error) {
	elf, err := tinyelf.Program(runtime.GOARCH, amd64(), arm64())
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("berth-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err != nil { // MFD_EXEC is of Linux 6.3
		fd, err = unix.MemfdCreate("berth-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "berth-init") //nolint:gosec // a descriptor
	if _, err := f.Write(elf); err != nil {
		_ = f.Close()
		return nil, err
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("seal the init image: %w", err)
	}
	return f, nil
}

// amd64 is the code for x86-64. Signal sets are built on the stack, the only writable memory.
func amd64() []byte {
	return []byte{
		0x68, 0x00, 0x00, 0x01, 0x00, // push 0x10000: the set {SIGCHLD}, bit 16
		0x31, 0xff, // xor edi, edi: SIG_BLOCK
		0x48, 0x89, 0xe6, // mov rsi, rsp
		0x31, 0xd2, // xor edx, edx
		0x41, 0xba, 8, 0, 0, 0, // mov r10d, 8
		0xb8, 14, 0, 0, 0, // mov eax, rt_sigprocmask
		0x0f, 0x05, // syscall
		// collect (offset 27):
		0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff, // mov rdi, -1
		0x31, 0xf6, // xor esi, esi
		0x31, 0xd2, // xor edx, edx
		0x45, 0x31, 0xd2, // xor r10d, r10d
		0xb8, 61, 0, 0, 0, // mov eax, wait4
		0x0f, 0x05, // syscall
		0x48, 0x85, 0xc0, // test rax, rax
		0x7f, 0xe6, // jg collect (-26)
		0x48, 0x89, 0xe7, // mov rdi, rsp
		0x31, 0xf6, // xor esi, esi
		0x31, 0xd2, // xor edx, edx: no timeout
		0x41, 0xba, 8, 0, 0, 0, // mov r10d, 8
		0xb8, 128, 0, 0, 0, // mov eax, rt_sigtimedwait
		0x0f, 0x05, // syscall
		0xeb, 0xd0, // jmp collect (-48)
	}
}

// arm64 is the code for AArch64.
func arm64() []byte {
	return tinyelf.Words(
		0xd2a00029, // mov x9, #0x10000: the set {SIGCHLD}
		0xf81f0fe9, // str x9, [sp, #-16]!
		0xd2800000, // mov x0, #0: SIG_BLOCK
		0x910003e1, // mov x1, sp
		0xd2800002, // mov x2, #0
		0xd2800103, // mov x3, #8
		0xd28010e8, // mov x8, #135: rt_sigprocmask
		0xd4000001, // svc #0
		// collect:
		0x92800000, // mov x0, #-1
		0xd2800001, // mov x1, #0
		0xd2800002, // mov x2, #0
		0xd2800003, // mov x3, #0
		0xd2802088, // mov x8, #260: wait4
		0xd4000001, // svc #0
		0xf100001f, // cmp x0, #0
		0x54ffff2c, // b.gt collect (-7 words)
		0x910003e0, // mov x0, sp
		0xd2800001, // mov x1, #0
		0xd2800002, // mov x2, #0
		0xd2800103, // mov x3, #8
		0xd2801128, // mov x8, #137: rt_sigtimedwait
		0xd4000001, // svc #0
		0x17fffff2, // b collect (-14 words)
	)
}
