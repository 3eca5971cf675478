package gpureal

import (
	"context"
	"fmt"
	"strings"
)

// foreign are libraries that the driver's ask for and that an image has, or has not: they are not the driver's.
func foreign() []string {
	return []string{"libgcc_s", "libstdc++", "libutil", "libssl", "libcrypto", "libX11", "libXext", "libwayland", "libdrm", "libgbm", "libGLdispatch"}
}

// loads looks, without a GPU, how far the driver's own programs and libraries come in a container that has nothing but the
// specification: the loader finds everything, and it is the kernel that has no driver.
func (n *node) loads(ctx context.Context, r *report, id string) {
	for _, c := range []struct {
		cmd  []string
		says string
	}{
		{[]string{"nvidia-smi", "-L"}, "couldn't communicate with the NVIDIA driver"},
		{[]string{"vectoradd"}, "cuInit: CUDA error 100"}, // CUDA_ERROR_NO_DEVICE
	} {
		out, err := n.exec(ctx, id, c.cmd...)
		if err == nil || !strings.Contains(out, c.says) {
			r.check(c.cmd[0]+" comes as far as the kernel", "", fmt.Errorf("it says %q, %w", out, err))
			continue
		}
		r.check(c.cmd[0]+" comes as far as the kernel", strings.TrimSpace(strings.Split(out, "\n")[0]), nil)
	}
	for _, dir := range []string{"/usr/local/nvidia/lib64", "/usr/lib/x86_64-linux-gnu"} {
		out, err := n.exec(ctx, id, "sh", "-c", "cd "+dir+" && for f in *nvidia*.so.* libcuda*.so.*; do [ -f $f ] && echo \"$f:\" && /lib64/ld-linux-x86-64.so.2 --list $PWD/$f 2>&1; done; true")
		missing := missing(out)
		if err == nil && len(missing) > 0 {
			err = fmt.Errorf("the loader does not find %v", missing)
		}
		r.check("the loader finds all of "+dir, fmt.Sprintf("%d libraries", strings.Count(out, ":\n")), err)
	}
}

// missing are the lines of a loader's list about libraries that an image need not have.
func missing(list string) (lines []string) {
	of := ""
	for line := range strings.Lines(list) {
		line = strings.TrimSpace(line)
		if strings.HasSuffix(line, ":") {
			of = line
		}
		own := true
		for _, f := range foreign() {
			own = own && !strings.HasPrefix(line, f) && !strings.Contains(line, ": "+f+".so")
		}
		if own && (strings.Contains(line, "not found") || strings.Contains(line, "cannot open") || strings.Contains(line, "error while loading")) {
			lines = append(lines, of+" "+line)
		}
	}
	return lines
}
