package procfs

import (
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/deviceplugin/internal/health"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
)

// xidLine is the driver's message, "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, ...". On a GPU in MIG mode
// the instances stand behind the bus, "(PCI:0000:3b:00 GPU-I:05 GPU-CI:00)" or the first of them alone. Behind the number
// is a program's own name: nothing of it is read.
var xidLine = regexp.MustCompile(`^[^;]*;NVRM: Xid \(PCI:([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})(?:\.[0-7])?` +
	`(?: GPU-I:[0-9]+)?(?: GPU-CI:[0-9]+)?\): ([0-9]{1,4})(?:,|$|\s)`)

// ParseXID reads one record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg), "6,1234,5678,-;text". bus is without
// the function, as the driver writes it. Records of user space (facility other than 0) are refused: anybody who may
// write to the log could forge them.
func ParseXID(record string) (bus string, xid int, ok bool) {
	m := xidLine.FindStringSubmatch(record)
	if m == nil {
		return "", 0, false
	}
	prefix := record
	for i := range prefix {
		if prefix[i] == ',' {
			prefix = prefix[:i]
			break
		}
	}
	if p, err := strconv.Atoi(prefix); err != nil || p>>3 != 0 {
		return "", 0, false
	}
	xid, err := strconv.Atoi(m[2])
	return inventory.Bus(m[1]), xid, err == nil
}

// log is the open kernel log, at the place that was read last.
func (s *Source) log() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kmsg != nil {
		return s.kmsg, nil
	}
	f, err := os.OpenFile(s.KernelLog, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.kmsg = f
	return f, nil
}

// Events implements discovery.Source: the kernel's log from the first call on. One caller at a time.
func (s *Source) Events(ctx context.Context) ([]health.Event, error) {
	if s.KernelLog == "" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f, err := s.log()
	if err != nil {
		return nil, err
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Now()) }) // ends the read below
	defer stop()
	buf := make([]byte, 8192)
	for {
		n, err := f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, unix.EPIPE): // the log went round faster than we read: go on with the next record
			continue
		case err != nil:
			return nil, err
		}
		bus, xid, ok := ParseXID(string(buf[:n]))
		if !ok {
			continue
		}
		list, err := s.Inventory(ctx)
		if err != nil {
			return nil, err
		}
		list.Clean()
		for _, g := range list.GPUs {
			if strings.HasPrefix(g.Bus, bus+".") {
				return []health.Event{{GPU: g.UUID, XID: xid}}, nil
			}
		}
	}
}
