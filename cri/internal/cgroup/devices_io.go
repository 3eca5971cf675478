package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ioV2 reads io.stat: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 …" (cgroup-v2.rst). A group without the controller has none.
func (l *Layout) ioV2(dir string) []DeviceIO {
	text, err := os.ReadFile(filepath.Join(dir, "io.stat")) //nolint:gosec // below the mount
	if err != nil {
		return nil
	}
	var all []DeviceIO
	for line := range strings.Lines(string(text)) {
		device, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		d, ok := parseDevice(device)
		if !ok {
			continue
		}
		for pair := range strings.FieldsSeq(rest) {
			key, value, _ := strings.Cut(pair, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				continue
			}
			switch key {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WriteBytes = n
			case "rios":
				d.Reads = n
			case "wios":
				d.Writes = n
			}
		}
		all = append(all, d)
	}
	return all
}

// ioV1 reads blkio.throttle.io_service_bytes and io_serviced: "8:0 Read 1" (blkio-controller.rst).
func (l *Layout) ioV1(dir string) []DeviceIO {
	if l.V1["blkio"] == "" {
		return nil
	}
	byDevice := map[string]*DeviceIO{}
	var all []*DeviceIO
	each := func(file string, to func(d *DeviceIO, kind string, n uint64)) {
		text, err := os.ReadFile(filepath.Join(dir, file)) //nolint:gosec // below the mount
		if err != nil {
			return
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) != 3 {
				continue // "Total 5"
			}
			n, err := strconv.ParseUint(f[2], 10, 64)
			fresh, ok := parseDevice(f[0])
			if err != nil || !ok {
				continue
			}
			if byDevice[f[0]] == nil {
				byDevice[f[0]] = &fresh
				all = append(all, &fresh)
			}
			to(byDevice[f[0]], f[1], n)
		}
	}
	each("blkio.throttle.io_service_bytes", func(d *DeviceIO, kind string, n uint64) {
		switch kind {
		case "Read":
			d.ReadBytes = n
		case "Write":
			d.WriteBytes = n
		}
	})
	each("blkio.throttle.io_serviced", func(d *DeviceIO, kind string, n uint64) {
		switch kind {
		case "Read":
			d.Reads = n
		case "Write":
			d.Writes = n
		}
	})
	out := make([]DeviceIO, 0, len(all))
	for _, d := range all {
		out = append(out, *d)
	}
	return out
}

func parseDevice(s string) (DeviceIO, bool) {
	major, minor, _ := strings.Cut(s, ":")
	a, aerr := strconv.ParseUint(major, 10, 32)
	b, berr := strconv.ParseUint(minor, 10, 32)
	return DeviceIO{Major: a, Minor: b}, aerr == nil && berr == nil
}

// hugePages reads hugetlb.SIZE.*, from the v1 controller or from the unified tree, whichever has it.
func (l *Layout) hugePages(path string) []HugePages {
	dir, usage := l.Unified+path, ".current"
	if l.V1["hugetlb"] != "" {
		dir, usage = l.V1["hugetlb"]+path, ".usage_in_bytes"
	}
	files, err := filepath.Glob(filepath.Join(dir, "hugetlb.*"+usage))
	if err != nil {
		return nil
	}
	var all []HugePages
	for _, f := range files {
		size := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "hugetlb."), usage)
		if strings.Contains(size, ".") { // the reservations
			continue
		}
		h := HugePages{Size: size, Usage: number(dir, filepath.Base(f)), Max: number(dir, "hugetlb."+size+".max_usage_in_bytes")}
		if h.Usage != math.MaxUint64 {
			all = append(all, h)
		}
	}
	return all
}
