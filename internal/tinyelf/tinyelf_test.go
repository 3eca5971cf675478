package tinyelf_test

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/berth-project/berth/internal/tinyelf"
)

// TestProgram: both files are good ELF by the standard library's word, and this machine's runs.
func TestProgram(t *testing.T) {
	amd64 := []byte{0xbf, 7, 0, 0, 0, 0xb8, 231, 0, 0, 0, 0x0f, 0x05} // exit_group(7)
	arm64 := tinyelf.Words(0xd28000e0, 0xd2800bc8, 0xd4000001)
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		b, err := tinyelf.Program(arch, amd64, arm64)
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil || f.Machine != machine || len(f.Progs) != 1 || f.Progs[0].Flags != elf.PF_R|elf.PF_X || f.Entry != f.Progs[0].Vaddr+uint64(len(b))-f.Progs[0].Filesz+120 {
			t.Errorf("%s: %+v, %v", arch, f, err)
		}
		if arch != runtime.GOARCH {
			continue
		}
		path := filepath.Join(t.TempDir(), "seven")
		if err := os.WriteFile(path, b, 0o700); err != nil {
			t.Fatal(err)
		}
		var ended *exec.ExitError
		if err := exec.Command(path).Run(); !errors.As(err, &ended) || ended.ExitCode() != 7 {
			t.Errorf("it ends with %v, want 7", err)
		}
	}
	if _, err := tinyelf.Program("mips", amd64, arm64); err == nil {
		t.Error("a program for an architecture that has none")
	}
}
