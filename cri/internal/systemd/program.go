package systemd

import (
	"runtime"

	"github.com/berth-project/berth/internal/tinyelf"
)

// program is the holder as a static ELF file for this machine. In C:
//
//	prctl(PR_SET_NAME, "berth-hold");
//	if (read(0, buffer, 1) != 1) exit_group(0);
//	close(0);
//	for (;;) pause();
//
// So it sleeps until its pipe is closed, or for good if there was a byte in it. It ends by a signal.
func program() ([]byte, error) { return tinyelf.Program(runtime.GOARCH, amd64(), arm64()) }

func amd64() []byte {
	return append([]byte{
		0xbf, 15, 0, 0, 0, // mov edi, PR_SET_NAME
		0x48, 0x8d, 0x35, 0x34, 0, 0, 0, // lea rsi, [rip+0x34]: the name, at offset 64
		0xb8, 157, 0, 0, 0, // mov eax, prctl
		0x0f, 0x05, // syscall
		0x31, 0xff, // xor edi, edi
		0x48, 0x89, 0xe6, // mov rsi, rsp
		0xba, 1, 0, 0, 0, // mov edx, 1
		0x31, 0xc0, // xor eax, eax: read
		0x0f, 0x05, // syscall
		0xff, 0xc8, // dec eax
		0x75, 0x12, // jnz end
		0x31, 0xff, // xor edi, edi
		0xb8, 3, 0, 0, 0, // mov eax, close
		0x0f, 0x05, // syscall
		// sleep:
		0xb8, 34, 0, 0, 0, // mov eax, pause
		0x0f, 0x05, // syscall
		0xeb, 0xf7, // jmp sleep
		// end:
		0x31, 0xff, // xor edi, edi
		0xb8, 231, 0, 0, 0, // mov eax, exit_group
		0x0f, 0x05, // syscall
	}, "berth-hold\x00"...)
}

func arm64() []byte {
	return append(tinyelf.Words(
		0xd28001e0, // mov x0, #15: PR_SET_NAME
		0x10000281, // adr x1, the name (20 words on)
		0xd28014e8, // mov x8, #167: prctl
		0xd4000001, // svc #0
		0xd2800000, // mov x0, #0
		0x910003e1, // mov x1, sp
		0xd2800022, // mov x2, #1
		0xd28007e8, // mov x8, #63: read
		0xd4000001, // svc #0
		0xf100041f, // cmp x0, #1
		0x54000101, // b.ne end (8 words on)
		// sleep:
		0xd2800000, // mov x0, #0
		0xd2800001, // mov x1, #0
		0xd2800002, // mov x2, #0
		0xd2800003, // mov x3, #0
		0xd2800928, // mov x8, #73: ppoll
		0xd4000001, // svc #0
		0x17fffffa, // b sleep
		// end:
		0xd2800000, // mov x0, #0
		0xd2800bc8, // mov x8, #94: exit_group
		0xd4000001, // svc #0
	), "berth-hold\x00"...)
}
