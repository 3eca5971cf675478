package inventory

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Caps maps the names in /proc/driver/nvidia-caps/mig-minors ("gpu0/gi1/ci0/access") to minors of the device
// class nvidia-caps.
type Caps map[string]int

// ParseCaps reads mig-minors: one "name minor" a line. A line of another form is an error that names it.
func ParseCaps(r io.Reader) (Caps, error) {
	caps := Caps{}
	s := bufio.NewScanner(r)
	for n := 1; s.Scan(); n++ {
		if strings.TrimSpace(s.Text()) == "" {
			continue
		}
		name, minor, ok := strings.Cut(strings.TrimSpace(s.Text()), " ")
		m, err := strconv.Atoi(strings.TrimSpace(minor))
		if !ok || err != nil || m < 0 || m >= 1<<20 {
			return nil, fmt.Errorf("mig-minors: line %d: %q is not a name and a minor", n, Text(s.Text()))
		}
		caps[name] = m
	}
	return caps, s.Err()
}

// Instance gives the two minors of an instance of the GPU with a device minor; 0 for one that is not listed.
func (c Caps) Instance(gpuMinor, gi, ci int) (giCap, ciCap int) {
	return c[fmt.Sprintf("gpu%d/gi%d/access", gpuMinor, gi)], c[fmt.Sprintf("gpu%d/gi%d/ci%d/access", gpuMinor, gi, ci)]
}

// DefaultCap is the driver's numbering, for profiles that do not spell it: 1 and 2 are config and monitor, then
// 15 GPU instances for each GPU, each followed by its 8 compute instances (as mig-minors of R450 to R580 has it).
func DefaultCap(gpuMinor, gi, ci int) (giCap, ciCap int) {
	giCap = 3 + gpuMinor*135 + gi*9
	return giCap, giCap + 1 + ci
}
